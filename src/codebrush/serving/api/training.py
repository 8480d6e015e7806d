"""`/v1/train`: packs trained on pictures of a library, stopped and resumed, and deleted."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from codebrush.errors import UsageError
from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import JobReply
from codebrush.serving.api.schemas.library import DeletedReply, StoppedReply, TrainRequest
from codebrush.serving.job import JobError
from codebrush.training.packs.budget import parse_budget, spell_seconds

router = APIRouter(tags=["training"])


@router.post("/v1/train", response_model=JobReply, status_code=202, summary="Train a pack on pictures of a library")
async def train(asked: TrainRequest, request: Request, context: Served) -> JSONResponse:
    """Answers with the job, whose `training` has curves, previews and what it says. A pack that is done is a model like
    the others at once. Deleting the job stops the training, which can then be resumed."""
    pack, found = await run_in_threadpool(training_job, context, asked)
    return await context.accepted(await context.submit("train", pack, found, request), request)


@router.get("/v1/train", response_model=StoppedReply, summary="List the trainings that can be resumed")
def stopped(context: Served) -> dict[str, Any]:
    """Those that were stopped or failed, with the disk that they take."""
    trainer, running = context.engine.trainer, {job.request["name"] for job in context.engine.live("train")}
    data = []
    for name in trainer.places.stopped():
        begun = None if name in running else trainer.begun(name)
        if begun is not None:
            taken = {"seconds": trainer.places.seconds(name), "disk_bytes": trainer.places.size(name)}
            data.append({"name": name, "source": begun["source"], "budget": begun["seconds"], **taken})
    return {"object": "list", "data": data}


@router.post("/v1/train/{name}/resume", response_model=JobReply, status_code=202, summary="Resume a training")
async def resume(name: str, request: Request, context: Served) -> JSONResponse:
    """Goes on with a training that was stopped, from its last checkpoint and for what is left of its budget."""
    begun = await run_in_threadpool(stopped_training, context, name)
    await run_in_threadpool(context.engine.library.find, begun["source"])
    job = await context.submit("train", context.settings.packs[0], begun, request)
    return await context.accepted(job, request)


def stopped_training(context: Context, name: str) -> dict[str, Any]:
    """The request of a training that was stopped. Raises JobError for a name that cannot be trained now."""
    context.engine.trainer.check_free({"name": name, "resume": True}, context.engine.live("train"))
    begun = context.engine.trainer.begun(name)
    if begun is None:  # deleted just now
        raise JobError("not_in_library", f"there is no stopped training of '{name}'")
    return begun


@router.delete("/v1/models/{model}", response_model=DeletedReply, summary="Delete a pack that was trained here")
def delete(model: str, context: Served) -> dict[str, Any]:
    """Deletes a trained pack, or what a stopped training has left; not a pack that the server was started with."""
    trainer = context.engine.trainer
    if model not in context.engine.packs and model not in trainer.places.stopped():
        raise JobError("model_not_found", f"there is no model '{model}', nor a stopped training of it")
    context.engine.delete_pack(model)
    return {"id": model, "object": "model", "deleted": True}


def training_job(context: Context, asked: TrainRequest) -> tuple[str, dict[str, Any]]:
    """The pack to begin from and the request of a job that trains. Raises Problem or JobError for what cannot be."""
    seconds = budget_of(asked.budget, context.engine.limits.budget)
    context.engine.library.find(asked.source)
    context.engine.trainer.check_free({"name": asked.name}, context.engine.live("train"))
    found = asked.model_dump(include={"source", "captions", "name", "budget", "fresh", "image_size", "seed"})
    return asked.model or context.settings.packs[0], found | {"seconds": seconds}


def budget_of(text: str, most: float) -> float:
    """The seconds of a budget. Raises Problem for one that is no time, or too long."""
    try:
        seconds = parse_budget(text, "budget")
    except UsageError as error:
        raise Problem(400, str(error), "invalid_value", "budget") from None
    if seconds > most:
        raise Problem(400, f"a training may take {spell_seconds(most)} at most here", "invalid_value", "budget")
    return seconds


@router.get("/files/{job}/training/{name}", response_class=FileResponse, include_in_schema=False)
def picture(job: str, name: str, context: Served) -> FileResponse:
    """A preview or a sheet of a training; it needs no key but its address, which nobody can guess."""
    found = context.engine.find(job)
    file: Path | None = None
    if found is not None and found.kind == "train":
        file = context.engine.trainer.pictures(found).get(name)
    if file is None:
        raise Problem(404, "there is no such file, or no longer", "not_found")
    return FileResponse(file, media_type="image/png", headers={"Cache-Control": "no-store"})
