"""What every route needs of the server: its engine and settings, and the caller's jobs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from codebrush.serving.api.problems import Problem
from codebrush.serving.api.waiting import finished
from codebrush.serving.job import Job
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.settings import Settings
from codebrush.serving.work.training_report import SHEETS

SAID = ("seed", "index", "clip_score", "scorer_score", "verdict", "identical")
EXACT = 2**53 - 1  # the largest whole number that JavaScript reads from JSON as it is


def said_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """What replies say of a picture of a job's result, as far as it is known; a seed that is rounded is a text."""
    found = {name: image[name] for name in SAID if name in image}
    return found | ({"seed": str(found["seed"])} if found.get("seed", 0) > EXACT else {})


@dataclass(frozen=True)
class Context:
    """The server behind a route. What may take a while, such as writing files, is done in another thread than that of
    the event loop, which answers all callers."""

    engine: Engine
    settings: Settings
    started: float = field(default_factory=time.time)

    async def submit(
        self, kind: str, pack: str, asked: dict[str, Any], request: Request, files: Mapping[str, bytes] | None = None
    ) -> Job:
        """A new job of the caller."""
        return await run_in_threadpool(self.engine.submit, kind, pack, asked, request.state.owner, files)

    async def done(
        self, kind: str, pack: str, asked: dict[str, Any], request: Request, files: Mapping[str, bytes] | None = None
    ) -> tuple[Job, dict[str, Any]]:
        """A new job of the caller when it is done, and its result. Raises Problem if it fails."""
        job = await self.submit(kind, pack, asked, request, files)
        await finished(self.engine, job, request)
        assert job.result is not None
        return job, job.result

    async def told(
        self, kind: str, pack: str, asked: dict[str, Any], request: Request, files: Mapping[str, bytes] | None = None
    ) -> tuple[Job, dict[str, Any]]:
        """As `done`, of a job whose result is all that there is of it: nobody else may read it, and it is forgotten."""
        job, result = await self.done(kind, pack, asked, request, files)
        await run_in_threadpool(self.engine.forget, job)
        return job, result

    async def accepted(self, job: Job, request: Request) -> JSONResponse:
        """The reply to a request whose job is not waited for."""
        said = await run_in_threadpool(self.job_reply, job, request)
        return JSONResponse(said, 202, {"Location": f"/v1/jobs/{job.id}"})

    def find(self, job: str, request: Request) -> Job:
        """A job of the caller. Raises Problem if there is none."""
        found = self.engine.find(job, request.state.owner)
        if found is None:
            raise Problem(404, f"there is no job '{job}', or no longer", "not_found", "job")
        return found

    def job_reply(self, job: Job, request: Request) -> dict[str, Any]:
        """A job as it is now, as replies and events say it."""
        files = f"{str(request.base_url).rstrip('/')}/files/{job.id}"
        data = None
        if job.state == "done" and job.result is not None and "images" in job.result:
            data = [
                {"url": f"{files}/{number}.png", **said_of(image)} for number, image in enumerate(job.result["images"])
            ]
        return {
            "id": job.id, "object": "job", "kind": job.kind, "model": job.pack, "state": job.state,
            "created": job.created, "started": job.started, "finished": job.finished,
            "progress": {"step": job.step, "of": job.of, "seconds_left": job.seconds_left},
            "latest": f"{files}/latest.png" if job.shown and not job.ended else None,
            "data": data, "error": job.error, "warnings": job.warnings,
            "index": job.result if job.kind == "index" else None,
            "training": self._training(job, files) if job.kind == "train" else None,
        }  # fmt: skip

    def _training(self, job: Job, files: str) -> dict[str, Any]:
        names = self.engine.trainer.pictures(job)
        previews, sheets = (
            [{"name": name, "url": f"{files}/training/{name}"} for name in names if (name in SHEETS) is wanted]
            for wanted in (False, True)
        )
        return {**self.engine.trainer.report(job), "previews": previews, "sheets": sheets}


async def _context(request: Request) -> Context:  # else each request would first wait for a thread
    return request.app.state.context


Served = Annotated[Context, Depends(_context)]
