"""`/v1/embeddings`: texts and pictures as vectors, as OpenAI's endpoint gives them."""

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from codebrush.models.clip import CLIPConfig
from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import MOST_INPUTS, EmbeddingRequest, EmbeddingsReply
from codebrush.serving.job import Job
from codebrush.text.prompts import MAX_PROMPT_LENGTH

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingsReply, summary="Embed texts and pictures")
async def embed(asked: EmbeddingRequest, request: Request, context: Served) -> Response:
    """As OpenAI's endpoint. Texts are taken literally; a picture is a data URL. Vectors have unit length."""
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    pack = asked.model or context.settings.packs[0]
    entries, files = await run_in_threadpool(_entries, inputs)
    await run_in_threadpool(_check_dimensions, context, pack, asked.dimensions)
    given = {"inputs": entries, "max_pixels": context.settings.max_input_pixels}
    job, result = await context.done("embed", pack, given, request, files)
    return await run_in_threadpool(_reply, context, job, result, asked)


def _reply(context: Context, job: Job, result: dict[str, Any], asked: EmbeddingRequest) -> Response:
    vectors = np.fromfile(job.folder / result["file"], dtype="<f4").reshape(len(job.request["inputs"]), -1)  # (B, E)
    context.engine.forget(job)  # the caller has it, and nobody else may
    tokens = result["tokens"]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    about = json.dumps({"object": "list", "model": job.pack, "usage": usage, "warnings": job.warnings})
    data = ", ".join(_entry_lines(_cut(vectors, asked.dimensions), asked.encoding_format))
    return Response(f'{about[:-1]}, "data": [{data}]}}', media_type="application/json")


def _entry_lines(vectors: np.ndarray, format: str | None) -> Iterator[str]:
    """The JSON of each vector: one by one, as nothing else runs in this process while a number is written as JSON."""
    for index, vector in enumerate(vectors):
        yield json.dumps({"object": "embedding", "index": index, "embedding": _written(vector, format)})


def _entries(inputs: list[str]) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """What each input is, {"text": ...} or {"file": ...}, and the files. Raises Problem for one that is neither."""
    if len(inputs) > MOST_INPUTS:
        raise Problem(400, f"give at most {MOST_INPUTS} inputs, not {len(inputs)}", "invalid_value", "input")
    entries, files = [], {}
    for index, text in enumerate(inputs):
        if text.startswith("data:image/"):
            name = f"input_{index:04d}"
            files[name] = data_url(text, f"input[{index}]")
            entries.append({"file": name})
        elif not text.strip() or len(text) > MAX_PROMPT_LENGTH:
            length = f"from 1 to {MAX_PROMPT_LENGTH:,} characters"
            raise Problem(400, f"each input must be a text of {length}", "invalid_value", f"input[{index}]")
        else:
            entries.append({"text": text})
    return entries, files


def data_urls(given: str | list[str], name: str, param: str) -> dict[str, bytes]:
    """The bytes of one data URL or several, as the files NAME_00, NAME_01 and so on of a job."""
    texts = [given] if isinstance(given, str) else given
    return {f"{name}_{number:02d}": data_url(text, param) for number, text in enumerate(texts)}


def data_url(text: str, param: str) -> bytes:
    """The bytes of a data URL. Raises Problem, which names `param`, if it is none in base64."""
    head, comma, content = text.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError(head)
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error):
        raise Problem(400, "a data URL must be data:image/TYPE;base64,...", "invalid_value", param) from None


def _check_dimensions(context: Context, pack: str, dimensions: int | None) -> None:
    if dimensions is None:
        return
    most = context.engine.brush(pack).pack.config(CLIPConfig).image.embed_dim
    if dimensions > most:
        raise Problem(400, f"the model '{pack}' has {most} dimensions", "invalid_value", "dimensions")


def _cut(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first `dimensions` of vectors (B, E), of unit length again."""
    if dimensions is None:
        return vectors
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return short / np.maximum(lengths, np.finfo(np.float32).tiny)


def _written(vector: np.ndarray, format: str | None) -> Any:
    if format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
