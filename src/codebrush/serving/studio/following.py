"""Follows a job from a page's event, which yields what is to be seen after each change."""

import asyncio
from collections.abc import AsyncIterator

from codebrush.serving.api.problems import Problem, problem_of
from codebrush.serving.api.waiting import changes, failure_of
from codebrush.serving.job import Job
from codebrush.serving.jobs.engine import Engine

LOOK_SECONDS = 1.0  # between two looks at a job that does not change
REST_SECONDS = 0.25  # least time between two looks


async def follow(engine: Engine, job: Job) -> AsyncIterator[Job]:
    """The job after each of its changes, a few times a second at most, until it is done.

    Raises:
        Problem: if it failed, was cancelled, or the server stops before.
    """
    async for _ in changes(job, LOOK_SECONDS):
        if job.ended or engine.stopping:
            break
        yield job
        await asyncio.sleep(REST_SECONDS)
    if not job.ended:
        raise problem_of(
            "server_stopping", "The server stops. The job is finished first, or goes on after its next start."
        )
    if job.state != "done":
        raise failure_of(job)


def was_cancelled(problem: Problem) -> bool:
    """Whether a job ended because it was cancelled, which is no error."""
    return problem.code == "job_cancelled"
