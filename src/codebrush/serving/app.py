"""The HTTP API: the app with all routes, its OpenAPI document, jobs, models and figures."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from codebrush.pack.members import MEMBERS
from codebrush.serving import sign_in
from codebrush.serving.api import edits, embeddings, images, library, pictures, reading, training
from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.images import event
from codebrush.serving.api.problems import add_handlers
from codebrush.serving.api.schemas.images import EVENTS, ErrorReply, HealthReply, JobReply, ModelReply, ModelsReply
from codebrush.serving.api.waiting import changes, left_waiting
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.security import Guard
from codebrush.serving.settings import Settings
from codebrush.version import __version__

ABOUT = "OpenAI's images and embeddings API on the models of packs, and jobs that can be looked at and cancelled."
HEARTBEAT = 15.0  # seconds between two events of a job that does not change
EVERY_REPLY: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request cannot be fulfilled; `message` says why."},
    401: {"model": ErrorReply, "description": "The key is missing or wrong."},
    403: {"model": ErrorReply, "description": "The Host or Origin header is another's."},
    404: {"model": ErrorReply, "description": "There is no such thing."},
    413: {"model": ErrorReply, "description": "The request is too large, or needs more memory than there is."},
    429: {
        "model": ErrorReply,
        "description": "The queue is full: `Retry-After` says when to try again.",
        "headers": {"Retry-After": {"required": True, "description": "Seconds.", "schema": {"type": "integer"}}},
    },
    500: {"model": ErrorReply, "description": "Something went wrong in the server."},
    503: {"model": ErrorReply, "description": "The server is about to stop."},
    507: {"model": ErrorReply, "description": "The disk of the server is full."},
}
router = APIRouter()
ROUTES = (images, edits, embeddings, pictures, reading, library, training)


def make_app(engine: Engine, settings: Settings) -> FastAPI:
    """The app that answers with `engine`, which it starts, and stops at the end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.stop, settings.grace)

    app = FastAPI(
        title="Codebrush", version=__version__, description=ABOUT, lifespan=lifespan, responses=EVERY_REPLY,
        docs_url=None, redoc_url=None,  # their pages load scripts from other hosts
    )  # fmt: skip
    app.state.context = Context(engine, settings)
    add_handlers(app)
    app.add_middleware(Guard, settings=settings, metrics=engine.metrics)
    for each in (router, *(part.router for part in ROUTES)):
        app.include_router(each)
    _add_page(app, settings)
    make = app.openapi
    app.openapi = lambda: _without_422(make())  # pyright: ignore[reportAttributeAccessIssue]
    return app


def _add_page(app: FastAPI, settings: Settings) -> None:
    """The page at `/`, behind all routes of the API; without it, a line that says how to get it."""
    if settings.page:
        from codebrush.serving.studio.page import mount

        app.include_router(sign_in.router)
        mount(app, app.state.context)
    else:
        app.add_api_route("/", lambda: PlainTextResponse(_NO_PAGE), include_in_schema=False)


_NO_PAGE = (
    "The API is at /v1. For the page install Gradio, pip install 'codebrush[studio]', and start codebrush serve "
    "without --no-page.\n"
)


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document without FastAPI's own form of errors, in whose place 400 is."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document


@router.get("/v1/models", response_model=ModelsReply, tags=["models"], summary="List the packs")
def models(context: Served) -> dict[str, Any]:
    """The packs that the server has, also those that were trained here; requests without a model get the first."""
    return {"object": "list", "data": [_model(context, name) for name in list(context.engine.packs)]}


@router.get("/v1/models/{model:path}", response_model=ModelReply, tags=["models"], summary="Describe a pack")
def model(model: str, context: Served) -> dict[str, Any]:
    """One pack."""
    context.engine.brush(model)  # raises JobError if there is none
    return _model(context, model)


def _model(context: Context, name: str) -> dict[str, Any]:
    pack = context.engine.brush(name).pack
    return {
        "id": name, "object": "model", "created": int((pack.folder / "pack.json").stat().st_mtime),
        "owned_by": str(pack.info.get("licence", "")), "image_size": pack.image_size,
        "members": [member for member in MEMBERS if pack.has(member)], "styles": pack.styles[1],
    }  # fmt: skip


@router.get("/v1/jobs/{job}", response_model=JobReply, tags=["jobs"], summary="Look at a job")
def job(job: str, request: Request, context: Served) -> dict[str, Any]:
    """How far a job of yours is, and what came of it."""
    return context.job_reply(context.find(job, request), request)


@router.delete("/v1/jobs/{job}", response_model=JobReply, tags=["jobs"], summary="Cancel a job")
def cancel(job: str, request: Request, context: Served) -> dict[str, Any]:
    """Takes a waiting job out of the queue and stops a running one after its next step; one that ended stays. Until
    nothing works on it any more, such as a training that saves, it is `cancelling`."""
    found = context.find(job, request)
    context.engine.cancel(found)
    return context.job_reply(found, request)


@router.get(
    "/v1/jobs/{job}/events",
    response_class=StreamingResponse,
    tags=["jobs"],
    summary="Follow a job",
    responses={200: {"content": EVENTS}},
)
async def events(job: str, request: Request, context: Served) -> StreamingResponse:
    """Server-sent events: `job` with what `GET /v1/jobs/{job}` says, after each change, until the job has ended."""
    found = await run_in_threadpool(context.find, job, request)

    async def follow() -> AsyncIterator[str]:
        last = ""
        async for _ in changes(found, HEARTBEAT):
            now = event("job", await run_in_threadpool(context.job_reply, found, request))
            yield now if now != last else ": nothing new\n\n"
            last = now
            if left_waiting(context.engine, found):
                break

    return StreamingResponse(follow(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/health", response_model=HealthReply, tags=["server"], summary="Is the server well?")
async def health(context: Served) -> JSONResponse:
    """200, or 503 when the server is about to stop or none of its workers is ready yet. Needs no key."""
    workers = context.engine.workers
    state = "stopping" if context.engine.stopping else "ok" if any(workers) else "starting"
    body = {
        "status": state, "version": __version__, "waiting": context.engine.waiting,
        "started": context.started, "workers": {"ready": sum(workers), "of": len(workers)},
    }  # fmt: skip
    return JSONResponse(body, 200 if state == "ok" else 503)


@router.get("/metrics", response_class=Response, tags=["server"], summary="Figures for Prometheus")
def metrics(context: Served) -> Response:
    """Counts of requests and jobs, the queue, the sizes of batches."""
    return Response(context.engine.metrics.text(), media_type=context.engine.metrics.content_type)
