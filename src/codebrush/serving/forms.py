"""Reads requests with pictures, sent as JSON with data URLs or as a form with files: both become the same request."""

import base64
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from codebrush.serving.problems import Problem
from codebrush.serving.schemas import MOST_SENT

FORM, JSON = "multipart/form-data", "application/json"
M = TypeVar("M", bound=BaseModel)


def body_of(kind: type[BaseModel], files: Mapping[str, str]) -> dict[str, Any]:
    """The part of the OpenAPI document that describes a body of either form; `files` says what each of the files is."""
    sent, form = kind.model_json_schema(), kind.model_json_schema()
    form.pop("examples", None)
    for name, about in files.items():
        form["properties"][name] = {"type": "string", "format": "binary", "description": about}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": sent}, FORM: {"schema": form}}}}


async def read_body(request: Request, kind: type[M], files: Mapping[str, str]) -> M:
    """The request of a body, in which `files` are data URLs.

    Raises:
        Problem: if it is no object, or a file is a text or the other way round.
        RequestValidationError: if it is not of its kind.
    """
    if request.headers.get("content-type", "").startswith(FORM):
        async with request.form(max_files=MOST_SENT + 1, max_fields=200) as form:
            found = {name.removesuffix("[]"): await _values(form, name, files) for name in form}
    else:
        found = _object(await request.body())
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> RequestValidationError:
    """What is wrong with a request, without what it held."""
    return RequestValidationError(error.errors(include_context=False, include_input=False))


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Problem if there is none, or a part of it cannot be written again."""
    try:
        found = json.loads(body, parse_constant=_refused)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no valid JSON", "invalid_json") from None
    if not isinstance(found, dict):
        raise Problem(400, "the body must be a JSON object", "invalid_json")
    return found


def _refused(name: str) -> None:
    raise ValueError(name)


async def _values(form: FormData, name: str, files: Mapping[str, str]) -> Any:
    """A field of a form: of a file its data URL, of several a list of them."""
    if name.removesuffix("[]") not in files:
        return text_of(form, name)
    urls = [
        f"data:image/png;base64,{base64.b64encode(await content(each, name)).decode()}" for each in form.getlist(name)
    ]
    return urls if len(urls) > 1 else urls[0]


def text_of(form: FormData, name: str) -> str:
    """The value of a field. Raises Problem for one that is a file, or given twice."""
    values = form.getlist(name)
    if len(values) > 1 or not isinstance(values[0], str):
        raise Problem(400, f"'{name}' must be one text", "invalid_value", name)
    return values[0]


async def content(upload: UploadFile | str, name: str) -> bytes:
    """What a file of a form holds. Raises Problem for a text."""
    if isinstance(upload, str):
        raise Problem(400, f"'{name}' must be a file", "invalid_value", name)
    return await upload.read()
