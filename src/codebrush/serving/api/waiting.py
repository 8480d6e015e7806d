"""Waiting for jobs without holding up the server, and cancelling those whose caller went away."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from codebrush.serving.api.problems import NOT_AGAIN, Problem, problem_of
from codebrush.serving.job import Job
from codebrush.serving.jobs.engine import Engine

LOOK_SECONDS = 0.5  # between two looks whether the caller is still there


async def changes(job: Job, seconds: float) -> AsyncIterator[None]:
    """Yields at once, after each change of a job, and after so many seconds without one; ends with the job."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(event.set)

    job.listen(tell)
    try:
        while True:
            ended = job.ended
            yield
            if ended:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
            event.clear()
    finally:
        job.unlisten(tell)


async def finished(engine: Engine, job: Job, request: Request) -> None:
    """Wait until a job is done; cancel it if its caller goes away.

    Raises:
        Problem: if it failed or was cancelled.
    """
    with left_at_the_end(engine, job):
        async for _ in changes(job, LOOK_SECONDS):
            if left_waiting(engine, job):
                break
            if not job.ended and await request.is_disconnected():
                await run_in_threadpool(engine.leave, job)
                break
    if job.state != "done":
        raise failure_of(job)


@contextmanager
def left_at_the_end(engine: Engine, job: Job) -> Iterator[None]:
    """A context in which a caller waits for a job, which is cancelled if it has not ended then. Nothing is waited for:
    the caller's task may be about to end."""
    try:
        yield
    finally:
        if not job.ended:
            asyncio.get_running_loop().run_in_executor(None, engine.leave, job)


def left_waiting(engine: Engine, job: Job) -> bool:
    """Whether a job is left to the next start of the server."""
    return engine.stopping and job.state == "queued"


def failure_of(job: Job) -> Problem:
    """What the caller of a job that is not done is told."""
    if job.state == "queued":
        said = f"the server stops; {job.id} goes on after its next start"
        return Problem(503, said, "server_stopping", headers=NOT_AGAIN)  # asked again it would be done twice
    if job.error is None:
        return problem_of("job_cancelled", "the job was cancelled")
    return problem_of(job.error["code"], job.error["message"])
