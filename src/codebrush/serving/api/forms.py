"""Reads requests with pictures, sent as JSON with data URLs or as a form with files: both become the same request."""

import base64
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.values import FROM_FORM, MOST_SENT

LONGEST_NAME = 255  # letters of a file's name that are kept
FORM, JSON = "multipart/form-data", "application/json"
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def body_of(kind: type[BaseModel], files: Mapping[str, str]) -> dict[str, Any]:
    """The part of the OpenAPI document that describes a body of either form; `files` says what each of the files is."""
    sent, form = kind.model_json_schema(), kind.model_json_schema()
    form.pop("examples", None)
    for name, about in files.items():
        form["properties"][name] = {"type": "string", "format": "binary", "description": about}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": sent}, FORM: {"schema": form}}}}


async def read_body(request: Request, kind: type[M], files: Mapping[str, str], several: Collection[str] = ()) -> M:
    """The request of a body, in which `files` are data URLs; of those named in `several` there may be more than one.

    Raises:
        Problem: if it is no object, or a file is a text or the other way round.
        RequestValidationError: if it is not of its kind.
    """
    is_form = request.headers.get("content-type", "").startswith(FORM)
    if is_form:
        async with request.form(max_files=MOST_SENT + 1, max_fields=200) as form:
            names = dict.fromkeys(name.removesuffix("[]") for name in form)
            found = {name: await _values(form, name, files, several) for name in names}
    else:
        found = await run_in_threadpool(_object, await request.body())
    try:
        return await run_in_threadpool(kind.model_validate, found, context=FROM_FORM if is_form else None)
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


async def _values(form: FormData, name: str, files: Mapping[str, str], several: Collection[str]) -> Any:
    """A field of a form, NAME or NAME[]: of a file its data URL, of several a list of them."""
    if name not in files:
        return text_of(form, name)
    given = [*form.getlist(name), *form.getlist(f"{name}[]")]
    if name not in several:
        only(given, name)
    names = ["" if isinstance(each, str) else each.filename or "" for each in given]
    urls = await run_in_threadpool(_data_urls, [await content(each, name) for each in given], names)
    return urls if len(urls) > 1 else urls[0]


def _data_urls(contents: Sequence[bytes], names: Sequence[str]) -> list[str]:
    """The URLs of files with these names ("": none), which `name_in` reads from them."""
    named = [f";name={quote(name[:LONGEST_NAME], safe='')}" if name else "" for name in names]
    return [
        f"data:image/png{name};base64,{base64.b64encode(each).decode()}"
        for name, each in zip(named, contents, strict=True)
    ]


def name_in(url: str) -> str:
    """The name of a picture that its data URL says, without the way to it; "" if none."""
    head = url.partition(",")[0][: 4 * 3 * LONGEST_NAME]
    found = next((part for part in head.split(";") if part.startswith("name=")), "")
    return re.split(r"[/\\]", unquote(found.removeprefix("name="), errors="replace"))[-1]


def text_of(form: FormData, name: str) -> str:
    """The value of a field. Raises Problem for one that is a file, or given twice."""
    value = only([*form.getlist(name), *form.getlist(f"{name}[]")], name)
    if not isinstance(value, str):
        raise Problem(400, f"'{name}' must be one text", "invalid_value", name)
    return value


def only(given: Sequence[T], name: str) -> T:
    """What a field holds that is sent once. Raises Problem for one that is sent several times."""
    if len(given) > 1:
        raise Problem(400, f"'{name}' was sent {len(given)} times: send it once", "invalid_value", name)
    return given[0]


async def content(upload: UploadFile | str, name: str) -> bytes:
    """What a file of a form holds. Raises Problem for a text."""
    if isinstance(upload, str):
        raise Problem(400, f"'{name}' must be a file", "invalid_value", name)
    return await upload.read()
