"""`/v1/classify`, `/v1/caption`, `/v1/ask` and `/v1/explain`: what pictures show."""

import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.embeddings import data_urls
from codebrush.serving.api.forms import body_of, read_body
from codebrush.serving.api.schemas.reading import (
    AnswersReply,
    AskRequest,
    CaptionRequest,
    CaptionsReply,
    ClassifyRequest,
    ExplainRequest,
    ExplanationsReply,
    LabelsReply,
    PicturesRequest,
)
from codebrush.serving.job import Job

router = APIRouter(tags=["understanding"])


@router.post("/v1/classify", response_model=LabelsReply, summary="Choose among labels")
async def classify(asked: ClassifyRequest, request: Request, context: Served) -> dict[str, Any]:
    """For each picture the labels with their probabilities, likeliest first."""
    return await _read("classify", asked, {"labels": asked.labels, "none": asked.none}, request, context)


@router.post("/v1/caption", response_model=CaptionsReply, summary="Describe pictures")
async def caption(asked: CaptionRequest, request: Request, context: Served) -> dict[str, Any]:
    """For each picture `n` captions, best first by CLIP's cosine."""
    return await _read("caption", asked, {"n": asked.n}, request, context)


@router.post("/v1/ask", response_model=AnswersReply, summary="Ask about pictures")
async def ask(asked: AskRequest, request: Request, context: Served) -> dict[str, Any]:
    """For each picture the answer, with the probability that it is right."""
    return await _read("ask", asked, {"question": asked.question}, request, context)


EXPLAINED = {"image": "The picture."}


@router.post(
    "/v1/explain",
    response_model=ExplanationsReply,
    summary="Explain a picture by words",
    openapi_extra=body_of(ExplainRequest, EXPLAINED),
)
async def explain(request: Request, context: Served) -> Response:
    """Heat maps of which pixels match a text and each of its words, and whether the picture shows what it says. The
    body is JSON, or a form with the picture as a file."""
    asked = await read_body(request, ExplainRequest, EXPLAINED)
    texts = asked.words or [asked.text]
    pack = asked.model or context.settings.packs[0]
    found = {"pictures": ["picture_00"], "max_pixels": context.settings.max_input_pixels}
    found |= {"texts": texts, "method": asked.method}
    files = await run_in_threadpool(data_urls, asked.image, "picture", "image")
    job, result = await context.done("explain", pack, found, request, files)
    return await run_in_threadpool(_explained, context, job, result)


def _explained(context: Context, job: Job, result: dict[str, Any]) -> Response:
    def shown(file: str | None) -> str | None:
        return None if file is None else base64.b64encode((job.folder / file).read_bytes()).decode()

    data = [
        {**entry, "map": shown(entry["map"]), "words": [{**word, "map": shown(word["map"])} for word in entry["words"]]}
        for entry in result["data"]
    ]
    context.engine.forget(job)
    return JSONResponse({"object": "list", "model": job.pack, "data": data, "warnings": job.warnings})


async def _read(
    kind: str, asked: PicturesRequest, options: dict[str, Any], request: Request, context: Context
) -> dict[str, Any]:
    """What a job of this kind says of the pictures, one entry each."""
    files = await run_in_threadpool(data_urls, asked.image, "picture", "image")
    pack = asked.model or context.settings.packs[0]
    found = {"pictures": list(files), "max_pixels": context.settings.max_input_pixels, "options": options}
    job, result = await context.told(kind, pack, found, request, files)
    return {"object": "list", "model": pack, "data": result["data"], "warnings": job.warnings}
