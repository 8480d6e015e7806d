"""Requests made of the OpenAPI document by schemathesis: the server answers each as the document says, never with 5xx.

Those that are valid get pictures, jobs and folders that are there, so that they are fulfilled as well as refused. The
campaign says what it did: pytest -s -m long tests/serving/api/test_openapi_schemas.py
"""

import base64
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="needs schemathesis")
pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("lancedb", reason='needs the extra "search"')

import schemathesis
from api_calls import call, job_when
from hypothesis import HealthCheck, Phase, assume, given, settings
from PIL import Image
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from server_thread import running

from codebrush import Codebrush
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.serving.jobs.engine import Limits
from packs import micro_captioner, micro_tokenizer, micro_transformer, write_micro_pack

# What a request needs to be fulfilled, if its operation has that parameter; pictures are one that the server drew.
PLAIN = {
    "prompt": "a red circle", "text": "a circle", "labels": ["a dog", "a circle"], "question": "what is it?",
    "input": "a circle", "folder": "library", "source": "library",
}  # fmt: skip
PICTURES = ("image", "source", "mask")
LIGHT = {"n": 2, "rerank": 4, "steps": 3, "upscale": 2, "cutouts": 2, "partial_images": 1}  # at most
NOT_HERE = ("positive_data_acceptance", "use_after_free", "ensure_resource_availability")  # valid is not yet possible
LACKING = ("/v1/caption", "/v1/ask", "/v1/upscale", "/v1/images/edits", "/v1/images/variations")  # in the micro pack
FORM = "multipart/form-data"
TRAINS = ("/v1/train", "/v1/train/{name}/resume")


@contextmanager
def _document(brush: Codebrush, name: str, folder: Path, seconds: float) -> Iterator[Any]:
    """The document of a server with a library that is indexed, and a job that is done."""
    library = folder / "library"
    library.mkdir()
    Image.new("RGB", (24, 20), "red").save(library / "one.png")
    (library / "one.txt").write_text("a red square")
    limits = Limits(seconds=seconds)
    with running(brush, folder / "data", name, libraries=(library,), limits=limits) as (url, _):
        indexed = call(f"{url}/v1/library/index", {"folder": "library"})[1]["id"]
        assert job_when(url, indexed, lambda job: False)["state"] == "done"
        checks = {check: {"enabled": False} for check in NOT_HERE}
        config = SchemathesisConfig.from_dict({"base-url": url, "checks": checks, "request-timeout": 10 * seconds})
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
        drawn = call(f"{url}/v1/images/generations", {"prompt": "a red circle", "quality": "low"})[1]
        schema.there = {"job": indexed, "model": name, "picture": drawn["data"][0]["b64_json"]}  # pyright: ignore[reportAttributeAccessIssue]
        yield schema


def _make_possible(case: Any) -> None:
    """Let a valid request name things that are there, and ask for little."""
    there = case.operation.schema.there
    case.path_parameters.update({name: there[name] for name in case.path_parameters if name in there})
    if not isinstance(case.body, dict):
        return
    for name, value in list(case.body.items()):
        if name in PICTURES and value is not None:
            case.body[name] = _picture(case.operation, case.media_type)
        elif name in LIGHT and isinstance(value, int):
            case.body[name] = min(value, LIGHT[name])
        elif name == "method" and value == "guide":
            case.body.setdefault("steps", LIGHT["steps"])
        elif name == "model" and value is not None:
            case.body[name] = there["model"]
        elif name in ("folder", "source") and case.path not in TRAINS:
            case.body[name] = "library"


def _picture(operation: Any, media_type: str) -> bytes | str:
    encoded = operation.schema.there["picture"]
    return base64.b64decode(encoded) if media_type == FORM else f"data:image/png;base64,{encoded}"


def _call_plainly(operation: Any, answers: Counter[tuple[str, int]]) -> None:
    """Call an operation with what it needs, in each form that it takes."""
    definition = operation.schema.raw_schema["paths"][operation.path][operation.method]
    for media_type, content in definition["requestBody"]["content"].items():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        known = operation.schema.raw_schema["components"]["schemas"].get(name, content["schema"])["properties"]
        body = {name: value for name, value in PLAIN.items() if name in known}
        if operation.label == "POST /v1/replay":
            del body["source"]
        if "image" in known and operation.label != "POST /v1/search":
            body["image"] = _picture(operation, media_type)
        case = operation.Case(body=body, media_type=media_type)
        answers[operation.label, case.call_and_validate().status_code] += 1


def _is_lost(case: Any) -> bool:
    """Whether what is wrong with a case may be lost in a form: a list of nothing is left out of it, and a list of one
    value is that value."""
    values = case.body.values() if case.media_type == FORM and isinstance(case.body, dict) else ()
    return any(isinstance(value, list) and len(value) < 2 for value in values)


def _call_all(schema: Any, examples: int) -> Counter[tuple[str, int]]:
    """Call every operation plainly, with so many valid requests and as many wrong ones: how often it answered what."""
    answers: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.body and operation.path not in TRAINS:
            _call_plainly(operation, answers)
        for mode in GenerationMode if operation.body else (GenerationMode.POSITIVE,):  # any text is a valid path
            _call_some(operation, mode, examples, answers)
    return answers


def _call_some(operation: Any, mode: GenerationMode, examples: int, answers: Counter[tuple[str, int]]) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        if mode.is_positive:
            _make_possible(case)
        else:
            assume(not _is_lost(case))
        answers[operation.label, case.call_and_validate().status_code] += 1

    each()


def _refused(answers: Counter[tuple[str, int]]) -> set[str]:
    """The paths of POST that fulfilled no request."""
    fulfilled = {label for label, status in answers if status < 300}
    return {label.partition(" ")[2] for label, _ in answers if label.startswith("POST") and label not in fulfilled}


def test_the_server_answers_as_its_document_says(served_brush: Codebrush, tmp_path: Path) -> None:
    with _document(served_brush, "micro", tmp_path, 5) as schema:
        answers = _call_all(schema, 2)
    assert set(schema) == {label.partition(" ")[2] for label, _ in answers}
    assert _refused(answers) == {*LACKING, *TRAINS}


def _whole_pack(name: str, folder: Path) -> Codebrush:
    """The built-in pack, or for "small" one with all members that requests need, in which everything is quick."""
    if name != "small":
        return Codebrush.from_pretrained(name, device="cpu")
    members: dict[str, Any] = {
        "transformer": micro_transformer(image_embedding=24, source_codes=True),
        "captioner": micro_captioner(), "words": micro_tokenizer(),
        "upscaler": Upscaler(UpscalerConfig(width=8, blocks=1)).eval(),
    }  # fmt: skip
    return Codebrush.from_pretrained(write_micro_pack(folder / "pack", **members), device="cpu")


@pytest.mark.long
@pytest.mark.parametrize(("name", "examples"), [("small", 60), ("emoji", 8)])
def test_a_whole_pack_answers_as_the_document_says(name: str, examples: int, tmp_path: Path) -> None:
    began = time.monotonic()
    with _document(_whole_pack(name, tmp_path), name, tmp_path, 30) as schema:
        answers = _call_all(schema, examples)
    for (label, status), count in sorted(answers.items()):
        print(f"{label}: {count} x {status}")
    operations = len({label for label, _ in answers})
    print(f"{operations} operations, {answers.total()} requests, {time.monotonic() - began:.0f} s")
    assert _refused(answers) == {*TRAINS}
