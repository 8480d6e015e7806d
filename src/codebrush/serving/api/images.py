"""`/v1/images/generations`: from OpenAI's request to a job, and from the job to its reply or its events."""

import base64
import io
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from codebrush.data.decoding.images import decode_image
from codebrush.generation.guided.guide_options import FLOW_GUIDING
from codebrush.generation.options import SAMPLING, parse_size
from codebrush.serving.api.context import Context, Served, said_of
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import (
    EVENTS,
    GUIDANCE,
    MOST_CANDIDATES,
    Drawing,
    GenerationRequest,
    ImagesReply,
    JobReply,
    Returned,
)
from codebrush.serving.api.waiting import changes, failure_of, finished, left_at_the_end, left_waiting
from codebrush.serving.job import Job
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.settings import Settings

NOT_STYLES = ("vivid", "natural")  # OpenAI's, which every pack takes
CANDIDATES = {"low": 1, "high": 8, "hd": 8}  # drawn for each picture that is kept; else the usual number
LONGEST_SIDES = {"jpeg": 65_500, "webp": 16_383}  # that the formats can store, in pixels
REPORTED = {"low": "low", "high": "high", "hd": "high"}
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
HEARTBEAT = 1.0  # seconds between two looks at a job that does not change
ASYNC_PREVIEWS = 3  # half-drawn pictures of a job that nobody waits for
# Options that pass from the request to `Codebrush.generate` as they are.
PASSED = (
    "negative_prompt", "steps", "sampler", "cfg_interval", "clip_guidance", "prior", "neighbours", "method", *SAMPLING
)  # fmt: skip
router = APIRouter(tags=["images"])


@router.post(
    "/v1/images/generations",
    response_model=ImagesReply,
    summary="Draw pictures of a prompt",
    responses={
        200: {"content": EVENTS},
        202: {"model": JobReply, "description": "The job, if `wait` is false."},
    },
)
async def generate(asked: GenerationRequest, request: Request, context: Served) -> Response:
    """As OpenAI's endpoint, with our own options beside its parameters. With `stream` the reply is server-sent events:
    `image_generation.partial_image` up to `partial_images` times, then `image_generation.completed` for each picture.
    With `wait` false it is the job, with status 202."""
    wanted = Wanted.of(asked)
    pack = asked.model or context.settings.packs[0]
    job = await context.submit("generate", pack, job_request(asked, context.settings), request)
    return await answer(context, job, asked, wanted, request, "image_generation")


async def answer(
    context: Context, job: Job, asked: Drawing, wanted: "Wanted", request: Request, events: str
) -> Response:
    """What a request is answered with: its job, its events, whose names begin with `events`, or its pictures."""
    if not asked.wait:
        return await context.accepted(job, request)
    if asked.stream:
        stream = _events(context.engine, job, wanted, events)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Job-Id": job.id})
    await finished(context.engine, job, request)
    return await run_in_threadpool(_reply, context.engine, job, wanted, request)


class Wanted:
    """In which form a caller wants pictures.

    Raises:
        Problem: if that is not possible.
    """

    def __init__(self, format: str = "png", compression: int = 100, quality: str = "auto", url: bool = False) -> None:
        self.format, self.compression, self.quality, self.url = format, compression, quality, url

    @classmethod
    def of(cls, asked: Returned) -> "Wanted":
        """What a request says of it."""
        drawing = asked if isinstance(asked, Drawing) else Drawing()
        if drawing.background == "transparent":
            raise Problem(400, "the pictures of this model are opaque", "unsupported_value", "background")
        format, compression = asked.output_format or "png", asked.output_compression
        if format == "png" and compression not in (None, 100):
            raise Problem(400, "png is never lossy: choose jpeg or webp", "unsupported_value", "output_compression")
        if drawing.partial_images and not drawing.stream and asked.wait:
            raise Problem(400, "partial_images is for stream", "invalid_value", "partial_images")
        quality = REPORTED.get(drawing.quality or "", "medium")
        compression = 100 if compression is None else compression
        return cls(format, compression, quality, asked.response_format == "url" and not drawing.stream)

    def about(self) -> dict[str, Any]:
        """What every reply repeats."""
        return {"background": "opaque", "output_format": self.format, "quality": self.quality}


def job_request(asked: GenerationRequest, settings: Settings) -> dict[str, Any]:
    """The arguments of `Codebrush.generate`, or of `guide`, that a request for pictures of a prompt stands for.

    Raises:
        Problem: if an option is not one of its method, or the pictures would be too large.
    """
    own = {option.name for option in GUIDANCE} | {"init", "preset"}
    given = {name: value for name, value in asked.model_dump(include=own).items() if value is not None}
    if asked.clip_guidance is not None and asked.method not in (None, "flow"):
        raise Problem(400, "clip_guidance is an option of the flow: add method flow", "invalid_value", "clip_guidance")
    if asked.method != "guide":
        _check_guiding(given, asked.clip_guidance is not None)
    found: dict[str, Any] = {"prompt": asked.prompt, **drawing_options(asked, PASSED)}
    if asked.method == "guide" and asked.rerank is None:
        found.pop("rerank", None)  # which `quality` stands for: not all runs draw a start
    if asked.size not in (None, "auto"):
        width, height = parse_size(asked.size)
        if width * height > settings.max_pixels:
            most = f"{settings.max_pixels:,} pixels"
            raise Problem(400, f"size {asked.size} has more than {most}", "invalid_value", "size")
        found["size"] = asked.size
    if asked.method == "guide":
        found["sampling"] = {name: found.pop(name) for name in SAMPLING if name in found}
    return found | given | previews_of(asked)


def previews_of(asked: Drawing) -> dict[str, Any]:
    """How many half-drawn pictures the job shows, as part of its request."""
    previews = asked.partial_images if asked.wait else ASYNC_PREVIEWS if asked.partial_images is None else None
    return {"previews": previews} if previews else {}


def _check_guiding(given: Mapping[str, Any], flow: bool) -> None:
    """Raise Problem for an option of guidance that is given to another method; a flow that CLIP guides takes some."""
    for name in given:
        if not (flow and name in FLOW_GUIDING):
            other = ", or clip_guidance with the method flow" if name in FLOW_GUIDING else ""
            raise Problem(400, f"'{name}' is an option of guidance: add method guide{other}", "invalid_value", name)


def drawing_options(asked: Drawing, passed: Sequence[str]) -> dict[str, Any]:
    """The seed, the number of pictures and those of the options `passed` that a request gives."""
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    found: dict[str, Any] = {"seed": seed, "n": asked.n or 1}
    found |= {name: value for name in passed if (value := getattr(asked, name, None)) is not None}
    style = getattr(asked, "style", None)
    if style is not None and style not in NOT_STYLES:
        found["style"] = style
    if asked.upscale not in (None, 1):
        found["upscale"] = asked.upscale
    if asked.rerank is None and asked.quality in CANDIDATES:
        found["rerank"] = min(CANDIDATES[asked.quality] * found["n"], MOST_CANDIDATES)  # what a replay may ask for, too
    return found


def _reply(engine: Engine, job: Job, wanted: Wanted, request: Request) -> JSONResponse:
    assert job.result is not None
    data = [picture_entry(job, number, wanted, request) for number in range(len(job.result["images"]))]
    about = {**wanted.about(), "size": size_of(job), "usage": usage_of(engine, job), "job": job.id}
    about["warnings"] = job.warnings
    return JSONResponse({"created": int(job.created), "data": data, **about}, headers={"X-Job-Id": job.id})


def picture_entry(job: Job, number: int, wanted: Wanted, request: Request) -> dict[str, Any]:
    """What a reply says of one picture of a job that is done."""
    assert job.result is not None
    image = job.result["images"][number]
    said = said_of(image)
    if wanted.url:
        return {"url": picture_url(job, number, wanted, request), **said}
    return {"b64_json": base64.b64encode(picture_bytes(job, number, wanted)).decode(), **said}


def picture_url(job: Job, number: int, wanted: Wanted, request: Request) -> str:
    """Where a picture is served. The job's id is part of it, which nobody can guess."""
    lossy = "" if wanted.format == "png" else f"?compression={wanted.compression}"
    return f"{str(request.base_url).rstrip('/')}/files/{job.id}/{number}.{wanted.format}{lossy}"


def picture_bytes(job: Job, number: int, wanted: Wanted) -> bytes:
    """The file of a picture in the form that is wanted; a PNG as it was stored, with how it was made. Raises Problem if
    it is kept no longer."""
    stored = _stored(job, number)
    return stored if wanted.format == "png" else _as(stored, wanted)


def _stored(job: Job, number: int) -> bytes:
    assert job.result is not None
    return kept(job, job.result["images"][number]["file"])


def kept(job: Job, name: str) -> bytes:
    """A file of a job. Raises Problem if it is kept no longer."""
    try:
        return (job.folder / name).read_bytes()
    except FileNotFoundError:
        raise no_file() from None


def no_file() -> Problem:
    """What one is told who asks for a file that is not there."""
    return Problem(404, "there is no such file, or no longer", "not_found")


def _as(png: bytes, wanted: Wanted) -> bytes:
    if wanted.format == "png":
        return png
    file, picture = io.BytesIO(), decode_image(png, keep_mode=wanted.format == "webp")
    most = LONGEST_SIDES[wanted.format]
    if max(picture.size) > most:
        said = f"a picture of {picture.width}x{picture.height} is too large for {wanted.format}, which ends at {most:,}"
        raise Problem(400, f"{said} pixels a side: ask for png", "unsupported_value", "output_format")
    picture.save(file, format=wanted.format.upper(), quality=wanted.compression)
    return file.getvalue()


def size_of(job: Job) -> str:
    """The size of a job's pictures, as OpenAI's API writes it."""
    assert job.result is not None
    return "{}x{}".format(*job.result["images"][0]["size"])


def usage_of(engine: Engine, job: Job) -> dict[str, Any]:
    """Text tokens that the pack reads of the prompt, and codes of the pictures: those sent, and those drawn."""
    assert job.result is not None
    prompt = job.request.get("prompt")
    tokens = len(engine.brush(job.pack).tokenizer.ids([prompt])[0]) if prompt else 0
    codes = sum(image["codes"] for image in job.result["images"])
    seen = len(job.request.get("pictures", ())) * job.result["images"][0]["codes"]
    details = {"text_tokens": tokens, "image_tokens": seen}
    read = tokens + seen
    return {
        "input_tokens": read, "input_tokens_details": details, "output_tokens": codes, "total_tokens": read + codes
    }  # fmt: skip


async def _events(engine: Engine, job: Job, wanted: Wanted, prefix: str) -> AsyncIterator[str]:
    """The server-sent events of a job, until it ends; it is cancelled if the caller goes away."""
    sent = 0
    with left_at_the_end(engine, job):
        async for _ in changes(job, HEARTBEAT):
            while sent < len(job.shown):  # more may come while these are sent
                for picture in job.shown[sent]:
                    yield await run_in_threadpool(_partial, picture, wanted, sent, prefix)
                sent += 1
            if left_waiting(engine, job):
                break
            if not job.ended:
                yield ": still at work\n\n"
        if job.state != "done" or job.result is None:
            yield event("error", failure_of(job).body())
            return
        for number in range(len(job.result["images"])):
            yield await run_in_threadpool(_completed, engine, job, number, wanted, prefix)


def _partial(picture: bytes, wanted: Wanted, index: int, prefix: str) -> str:
    size = "{}x{}".format(*Image.open(io.BytesIO(picture)).size)
    return event(f"{prefix}.partial_image", {**_event(picture, wanted, size), "partial_image_index": index})


def _completed(engine: Engine, job: Job, number: int, wanted: Wanted, prefix: str) -> str:
    try:
        content = _event(_stored(job, number), wanted, size_of(job))
    except Problem as problem:
        return event("error", problem.body())
    content |= {"usage": usage_of(engine, job), "warnings": job.warnings}
    return event(f"{prefix}.completed", content)


def _event(png: bytes, wanted: Wanted, size: str) -> dict[str, Any]:
    encoded = base64.b64encode(_as(png, wanted)).decode()
    return {"b64_json": encoded, "created_at": int(time.time()), "size": size, **wanted.about()}


def event(kind: str, content: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n"


@router.get("/files/{job}/{name}", response_class=Response, include_in_schema=False)
def file(job: str, name: str, context: Served, compression: int = 100, picture: int = 0) -> Response:
    """A picture of a job, NUMBER.FORMAT, its film, or one of its latest half-drawn pictures; it needs no key but its
    name."""
    if name == "latest.png" and 0 <= picture < len(latest := context.engine.latest(job)):
        return Response(latest[picture], media_type="image/png", headers={"Cache-Control": "no-store"})
    found, (number, _, format) = context.engine.find(job), name.partition(".")
    made = [] if found is None or found.state != "done" else (found.result or {}).get("images", [])
    if found is not None and found.state == "done" and name == (found.result or {}).get("film"):
        return Response(kept(found, name), media_type=FORMATS[format])
    if found is None or format not in FORMATS or not number.isdecimal() or len(number) > 4 or int(number) >= len(made):
        raise no_file()
    content = picture_bytes(found, int(number), Wanted(format, min(max(compression, 0), 100)))
    return Response(content, media_type=FORMATS[format], headers={"Cache-Control": "private, max-age=3600"})
