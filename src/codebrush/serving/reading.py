"""`/v1/classify`, `/v1/caption` and `/v1/ask`: what pictures show."""

from typing import Any

from fastapi import APIRouter, Request

from codebrush.serving.context import Context, Served
from codebrush.serving.embeddings import data_url
from codebrush.serving.schemas import (
    AnswersReply,
    AskRequest,
    CaptionRequest,
    CaptionsReply,
    ClassifyRequest,
    LabelsReply,
    PicturesRequest,
)
from codebrush.serving.waiting import finished

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


async def _read(
    kind: str, asked: PicturesRequest, options: dict[str, Any], request: Request, context: Context
) -> dict[str, Any]:
    """What a job of this kind says of the pictures, one entry each."""
    texts = [asked.image] if isinstance(asked.image, str) else asked.image
    files = {f"picture_{number:02d}": data_url(text, "image") for number, text in enumerate(texts)}
    pack = asked.model or context.settings.packs[0]
    found = {"pictures": list(files), "max_pixels": context.settings.max_input_pixels, "options": options}
    job = context.submit(kind, pack, found, request, files)
    await finished(context.engine, job, request)
    assert job.result is not None
    context.engine.forget(job)
    return {"object": "list", "model": pack, "data": job.result["data"], "warnings": job.warnings}
