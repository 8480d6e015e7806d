"""What the tests of the engine share: an engine on the micro pack, and waiting for a job."""

import threading
from pathlib import Path
from typing import Any

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image
from codebrush.serving.job import Job
from codebrush.serving.jobs.engine import Engine, Limits
from codebrush.serving.jobs.store import Store

DRAWN = {"n": 1, "rerank": 2}


def request(seed: int = 0, prompt: str = "a red circle", **options: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, **DRAWN, **options}


def guided(**options: Any) -> dict[str, Any]:
    return {"prompt": "a red circle", "seed": 1, "n": 1, "method": "guide", "init": "random", "cutouts": 2, **options}


def make_engine(brush: Codebrush, data: Path, **limits: Any) -> Engine:
    return Engine({"micro": lambda: brush}, Store(data), Limits(**limits))


def wait_until(job: Job, true: Any, seconds: float = 60) -> Job:
    """The job when `true(job)`, looked at after each of its changes."""
    event = threading.Event()
    job.listen(lambda: event.set() if true(job) else None)
    assert true(job) or event.wait(seconds), job
    return job


def ended(job: Job) -> Job:
    return wait_until(job, lambda job: job.ended)


def pixels(job: Job) -> list[bytes]:
    assert job.result is not None, job.error
    return [decode_image(job.folder / each["file"], keep_mode=True).tobytes() for each in job.result["images"]]


def found(engine: Engine, job: Job) -> Job:
    """The job as this engine knows it."""
    known = engine.find(job.id)
    assert known is not None
    return known


def error_of(job: Job) -> dict[str, Any]:
    assert job.error is not None, job
    return job.error


def result_of(job: Job) -> dict[str, Any]:
    assert job.result is not None, job.error
    return job.result
