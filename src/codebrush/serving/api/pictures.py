"""`/v1/upscale` and `/v1/replay`: pictures enlarged, and made again."""

import io
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from codebrush.data.decoding.images import read_manifest
from codebrush.generation.options import parse_size
from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.embeddings import data_url, data_urls
from codebrush.serving.api.forms import body_of, name_in, read_body
from codebrush.serving.api.images import Wanted, picture_entry, size_of
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import (
    MOST_CANDIDATES,
    MOST_PICTURES,
    MOST_STEPS,
    JobReply,
    PicturesReply,
    ReplayRequest,
    Returned,
    UpscaleRequest,
)
from codebrush.serving.api.waiting import finished
from codebrush.serving.job import Job
from codebrush.serving.settings import Settings

MOST: Mapping[str, int] = {  # of what a manifest may ask for, as of what a request may
    "n": MOST_CANDIDATES, "rerank": MOST_CANDIDATES, "batch_size": MOST_PICTURES, "steps": MOST_STEPS, "threads": 64,
}  # fmt: skip
MOST_UPSCALINGS = 2
UPSCALED = {"image": "The picture. Several come as `image[]`."}
REPLAYED = {
    "image": "The PNG.",
    "source": "The picture that it was made from, if any. Several come as `source[]`.",
    "mask": "The mask of an edit, as it was sent then.",
}
REPLIES: dict[int | str, dict[str, Any]] = {202: {"model": JobReply, "description": "The job, if `wait` is false."}}
router = APIRouter(tags=["images"])


@router.post(
    "/v1/upscale",
    response_model=PicturesReply,
    summary="Enlarge pictures",
    responses=REPLIES,
    openapi_extra=body_of(UpscaleRequest, UPSCALED),
)
async def upscale(request: Request, context: Served) -> Response:
    """Pictures 2 or 4 times as wide and high, with their transparency. The body is JSON, or a form with files."""
    asked = await read_body(request, UpscaleRequest, UPSCALED, several=("image",))
    files = await run_in_threadpool(data_urls, asked.image, "picture", "image")
    urls = [asked.image] if isinstance(asked.image, str) else asked.image
    names = {name: name_in(url) for name, url in zip(files, urls, strict=True)}
    found = {"pictures": list(files), "scale": asked.scale, "names": names}
    return await _answer(context, "upscale", asked.model, found, files, asked, request)


@router.post(
    "/v1/replay",
    response_model=PicturesReply,
    summary="Make a picture again",
    responses=REPLIES,
    openapi_extra=body_of(ReplayRequest, REPLAYED),
)
async def replay(request: Request, context: Served) -> Response:
    """The same pixels again, from a PNG that Codebrush made or from its manifest. What an edit or a guided picture was
    made from is sent along as `source` and `mask`: files that a manifest names are not opened. The pack is the one that
    it was made with. The body is JSON, or a form with files."""
    asked = await read_body(request, ReplayRequest, REPLAYED, several=("source",))
    pack, found, files = await run_in_threadpool(_replayed, asked, context)
    return await _answer(context, "replay", pack, found, files, asked, request)


def _replayed(asked: ReplayRequest, context: Context) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """The pack, the arguments and the files of a job that makes a picture again. Raises Problem if there is none."""
    if (asked.image is None) == (asked.manifest is None):
        raise Problem(400, "send the PNG as image, or its manifest", "missing_required_parameter", "image")
    files = data_urls(asked.source or [], "source", "source")
    files |= {} if asked.mask is None else {"mask": data_url(asked.mask, "mask")}
    found: dict[str, Any] = {"sources": list(files), "picture": None}
    manifest = asked.manifest or {}
    if asked.image is not None:
        files["picture"], found["picture"] = data_url(asked.image, "image"), "picture"
        manifest = read_manifest(io.BytesIO(files["picture"]))
    _check_limits(manifest, context.settings)
    found["manifest"] = manifest
    return asked.model or _made_with(context, manifest), found, files


async def _answer(
    context: Context,
    kind: str,
    model: str | None,
    found: dict[str, Any],
    files: Mapping[str, bytes],
    asked: Returned,
    request: Request,
) -> Response:
    wanted, found["max_pixels"] = Wanted.of(asked), context.settings.max_input_pixels
    job = await context.submit(kind, model or context.settings.packs[0], found, request, files)
    if not asked.wait:
        return await context.accepted(job, request)
    await finished(context.engine, job, request)
    return await run_in_threadpool(_reply, job, wanted, request)


def _reply(job: Job, wanted: Wanted, request: Request) -> JSONResponse:
    assert job.result is not None
    said = {
        "created": int(job.created),
        "data": [picture_entry(job, number, wanted, request) for number in range(len(job.result["images"]))],
        "output_format": wanted.format, "size": size_of(job), "model": job.pack, "job": job.id,
        "warnings": job.warnings,
    }  # fmt: skip
    return JSONResponse(said, headers={"X-Job-Id": job.id})


def _made_with(context: Context, manifest: Mapping[str, Any]) -> str:
    """The name of the pack that a picture was made with. Raises Problem if the server has none of its hash."""
    pack, packs = manifest.get("pack"), list(context.engine.packs)
    if not isinstance(pack, dict):
        return packs[0]  # the manifest is damaged, which the job says
    for each in packs:
        if context.engine.brush(each).pack.hash == pack.get("hash"):
            return each
    made = f"made with the pack '{pack.get('name')}', which this server does not have"
    raise Problem(404, made, "model_not_found", "image")


def _check_limits(manifest: Mapping[str, Any], settings: Settings) -> None:
    """Raises Problem if a manifest asks for more work than a request may."""
    parts = [manifest, manifest.get("options"), manifest.get("sampling")]
    parts += [part.get("flow") for part in parts if isinstance(part, dict)]
    for part in parts:
        if not isinstance(part, dict):
            continue
        for name, most in MOST.items():
            value = part.get(name)
            if isinstance(value, int | float) and value > most:
                raise Problem(400, f"the manifest has {name} {value}: this server takes up to {most}", "invalid_value")
        if isinstance(part.get("size"), str | int):
            width, height = parse_size(part["size"])
            if width * height > settings.max_pixels:
                raise Problem(400, f"size {part['size']} has more than {settings.max_pixels:,} pixels", "invalid_value")
    upscaled = manifest.get("upscaled")
    if isinstance(upscaled, list) and len(upscaled) > MOST_UPSCALINGS:
        raise Problem(400, f"the picture was enlarged more than {MOST_UPSCALINGS} times", "invalid_value")
