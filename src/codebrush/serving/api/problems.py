"""Errors in the form of OpenAI's API, with a status that its client does not retry if the caller is to blame."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from codebrush.errors import CodebrushError
from codebrush.generation.options import did_you_mean
from codebrush.serving.faults import fault_of
from codebrush.serving.job import QueueFull

STATUS = {  # of an error's code; any other is the caller's, 400
    "queue_full": 429,
    **dict.fromkeys(("model_not_found", "no_library", "not_in_library", "not_indexed", "picture_not_found"), 404),
    "not_found": 404,
    "out_of_memory": 413,  # less can be asked for; a client that tried again would only fill the memory again
    "no_space": 507,
    "server_stopping": 503,
    **dict.fromkeys(("internal_error", "not_deleted", "worker_died"), 500),
}
_SENT_IN = ("body", "query", "path")  # the first part of the place of an error, which names no parameter
_BRANCH = re.compile(r"(list|function|constrained)\W.*$")  # a branch of a union, which names none either
NOT_AGAIN = {"x-should-retry": "false"}  # what the official client obeys


class Problem(HTTPException):
    """An error that a caller is told."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """The JSON object that says it."""
        kind = _kind(self.status_code)
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def reply(self) -> JSONResponse:
        """The reply that says it."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def problem_of(code: str, message: str, param: str | None = None) -> Problem:
    """The error that a job ended with."""
    status = STATUS.get(code, 400)
    return Problem(status, message, code, param, NOT_AGAIN if status in (500, 507) else None)


def add_handlers(app: FastAPI) -> None:
    """Let every error leave the app in this form."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(CodebrushError, _user_error)
    app.add_exception_handler(HTTPException, _http)


async def _problem(_: Request, error: Any) -> JSONResponse:
    return error.reply()


async def _user_error(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, QueueFull):
        return Problem(429, str(error), error.code, headers={"Retry-After": str(error.retry_after)}).reply()
    return fault(error, request.app.state.context.engine.plain).reply()


async def _invalid(request: Request, error: Any) -> JSONResponse:
    found = error.errors()
    meant = (each for each in found if not each["type"].endswith("_type"))  # of a union the branch that was meant
    first = next(meant, found[0])
    place = _place(first)
    name, kind = ".".join(place) or None, first["type"]
    if kind == "json_invalid":
        return Problem(400, "the body is no valid JSON", "invalid_json").reply()
    if kind == "extra_forbidden":
        hint = did_you_mean(place[-1], _known(request))
        return Problem(400, f"Unknown parameter: '{name}'{hint}", "unknown_parameter", name).reply()
    if kind == "missing":
        what = f"Missing required parameter: '{name}'" if name else "the request has no body"
        return Problem(400, what, "missing_required_parameter", name).reply()
    return Problem(400, invalid_line(first), "invalid_value", name).reply()


def invalid_line(error: Mapping[str, Any]) -> str:
    """What is said of one of pydantic's errors about a value."""
    said = error["msg"].removeprefix("Value error, ")
    return f"Invalid value for '{'.'.join(_place(error))}': {said}" if _place(error) else said


def _place(error: Mapping[str, Any]) -> list[str]:
    """The parameter that one of pydantic's errors is about, and the place in it."""
    place = [str(part) for part in error["loc"]]
    place = place[1:] if place[:1] and place[0] in _SENT_IN else place
    unknown = len(place) - 1 if error["type"] == "extra_forbidden" else -1  # whose name may be anything
    return [
        part
        for number, part in enumerate(place)
        if number == unknown or not (_BRANCH.match(part) or (number and part == "str"))
    ]


def _known(request: Request) -> list[str]:
    """The parameters of the request's route."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return list(getattr(getattr(body, "field_info", None), "annotation", BaseModel).model_fields)


async def _http(_: Request, error: Any) -> JSONResponse:
    return Problem(error.status_code, str(error.detail), headers=error.headers).reply()


def fault(error: Exception, plain: Callable[[str], str] = str) -> Problem:
    """What is told of an error; see `fault_of`."""
    said = fault_of(error, plain)
    return problem_of(said["code"], said["message"])


def _kind(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
