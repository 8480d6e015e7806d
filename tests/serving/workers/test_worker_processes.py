"""Workers in processes of their own: the pictures of a single process, drawn at once; what a death, a cancellation and
a stop do to jobs; and that none outlives its server."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')
pytest.importorskip("psutil")

import psutil
from worker_stand_ins import start_worker

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.serving.job import Job, QueueFull
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.limits import Limits
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.threads import worker_threads
from codebrush.serving.workers.processes import Processes
from engine_helpers import ended, guided, pixels, request, wait_until

ENDLESS = 100_000  # steps


def make_engine(brush: Codebrush, processes: ForkServerContext, data: Path, count: int, **limits: Any) -> Engine:
    workers = Processes(count, Library((), data), context=processes)
    return Engine({"micro": lambda: brush}, Store(data), Limits(**limits), workers=workers)


@pytest.fixture(scope="module")
def engine(
    processes: ForkServerContext, served_brush: Codebrush, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """One with two workers for the tests of this file."""
    made = make_engine(served_brush, processes, tmp_path_factory.mktemp("served"), 2, queue=4)
    made.start()
    yield made
    made.stop(0)


@pytest.fixture(autouse=True)
def all_free(engine: Engine) -> None:
    """Each test begins with workers that are ready and that no cancelled job holds any more."""
    wait_for(lambda: all(engine.workers) and not any(lane.busy for lane in engine._lanes.values()))


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE  # which nobody has asked for its status


def figures(engine: Engine, name: str) -> dict[str, float]:
    """A figure of each worker."""
    lines = engine.metrics.text().decode().splitlines()
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")}


def begun(engine: Engine, **options: Any) -> tuple[Job, int]:
    """A guided job that a worker has begun, and which one."""
    return begun_and(engine, lambda worker: None, **options)


def begun_and(engine: Engine, then: Callable[[int], None], **options: Any) -> tuple[Job, int]:
    """The same, where `then` is called with the worker at the first step, before anything else of it is heard."""
    before, found = figures(engine, "codebrush_worker_jobs_total"), list[int]()

    def at_each_change() -> None:
        if job.step > 0 and not found:
            after = figures(engine, "codebrush_worker_jobs_total")
            found.append(next(int(name) for name in after if after[name] != before.get(name, 0)))
            then(found[0])

    with engine._lock:  # so that nobody takes it before it is listened to
        job = engine.submit("generate", "micro", guided(**options), "ann")
        job.listen(at_each_change)
    wait_until(job, lambda job: found)
    return job, found[0]


def kill(engine: Engine, number: int) -> None:
    os.kill(engine._workers._ready[number].process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def guided_alone(served_brush: Codebrush) -> bytes:
    """The pixels of a guided picture of 30 steps, by one process."""
    return served_brush.generate(**guided(steps=30))[0].image.tobytes()


def test_two_workers_draw_at_once_what_one_process_draws(
    engine: Engine, served_brush: Codebrush, guided_alone: bytes
) -> None:
    busy, _ = begun(engine, steps=ENDLESS)
    jobs = [engine.submit("generate", "micro", request(seed), "bob") for seed in (7, 2**40)]
    for job in map(ended, jobs):
        assert busy.state == "running"  # by the other worker
        (alone,) = served_brush.generate(**job.request)
        assert pixels(job) == [alone.image.tobytes()]
        assert read_manifest(job.folder / "picture_00.png") == alone.manifest
    first, _ = begun(engine, steps=30, previews=2)
    assert pixels(ended(first)) == [guided_alone]
    assert busy.state == "running"
    engine.cancel(busy)
    assert ended(busy).state == "cancelled"
    assert (len(first.shown), len(first.losses)) == (2, 30)
    assert first.losses == first.result["losses"]


def test_what_waits_is_shared_out_among_free_workers(engine: Engine) -> None:
    before = figures(engine, "codebrush_worker_jobs_total")
    with engine._lock:  # so that nobody takes the first before the last is there
        jobs = [engine.submit("generate", "micro", request(seed), "ann") for seed in range(4)]
    assert [ended(job).state for job in jobs] == ["done"] * 4
    after = figures(engine, "codebrush_worker_jobs_total")
    assert [after[name] - before.get(name, 0) for name in ("0", "1")] == [2, 2]


def test_a_reading_does_not_wait_for_drawings(engine: Engine, served_brush: Codebrush) -> None:
    busy = [begun(engine, steps=ENDLESS)[0] for _ in range(2)]
    job = engine.submit("embed", "micro", {"inputs": [{"text": "a red circle"}], "max_pixels": 1024}, "bob")
    assert ended(job).state == "done", job.error
    vectors = (job.folder / "vectors.f32").read_bytes()
    assert vectors == served_brush.embed_text(["a red circle"]).numpy().astype("<f4").tobytes()
    waiting = [engine.submit("generate", "micro", request(seed), "bob") for seed in range(4)]
    with pytest.raises(QueueFull):
        engine.submit("generate", "micro", request(), "cid")
    for job in busy:
        engine.cancel(job)
        assert ended(job).state == "cancelled"
    assert [ended(job).state for job in waiting] == ["done"] * 4  # by workers that go on


def test_the_job_of_a_killed_worker_is_done_by_another_and_others_go_on(engine: Engine, guided_alone: bytes) -> None:
    deaths = figures(engine, "codebrush_worker_deaths_total")
    other, _ = begun(engine, steps=ENDLESS)
    job, worker = begun_and(engine, lambda worker: kill(engine, worker), steps=30)
    assert pixels(ended(job)) == [guided_alone]
    assert (job.attempts, other.attempts, other.state) == (2, 1, "running")
    engine.cancel(other)
    assert ended(other).state == "cancelled"
    assert figures(engine, "codebrush_worker_deaths_total")[str(worker)] == deaths.get(str(worker), 0) + 1


def test_a_job_that_kills_two_workers_fails_and_others_take_their_place(engine: Engine) -> None:
    job, worker = begun(engine, steps=ENDLESS)
    kill(engine, worker)
    wait_until(job, lambda job: job.attempts == 2 and job.step > 0)
    kill(engine, 1 - worker)  # the only one that was ready
    assert ended(job).error["code"] == "worker_died"
    assert "\n" not in job.error["message"]
    assert ended(engine.submit("generate", "micro", request(), "bob")).state == "done"


def test_a_fault_in_a_worker_is_told_as_in_one_process(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    job = engine.submit("generate", "micro", request(1, "a dog:1:2:3:4 |"), "ann")
    assert ended(job).error["code"] == "invalid_value"
    job = engine.submit("upscale", "micro", {"pictures": ["none.png"], "max_pixels": 1, "scale": 2}, "ann")
    assert ended(job).error["code"] == "internal_error"
    assert "FileNotFoundError" in caplog.text
    assert "sent.py" in caplog.text  # where it came from


def test_a_stopped_server_ends_its_workers_and_leaves_their_jobs(
    processes: ForkServerContext, served_brush: Codebrush, tmp_path: Path
) -> None:
    engine = make_engine(served_brush, processes, tmp_path, 1)
    job = engine.submit("generate", "micro", guided(steps=ENDLESS), "ann")
    engine.start()
    assert list(figures(engine, "codebrush_worker_ready")) == ["0"]  # also before it is ready
    wait_until(job, lambda job: job.step > 0)
    worker = psutil.Process(engine._workers._ready[0].process.pid)
    engine.stop(0)
    assert (job.state, job.attempts) == ("queued", 0)
    assert has_ended(worker)


def test_a_worker_of_a_killed_server_ends(processes: ForkServerContext, tmp_path: Path) -> None:
    here, there = processes.Pipe()
    server = processes.Process(target=start_worker, args=(there, tmp_path))
    server.start()
    there.close()
    worker = psutil.Process(here.recv())
    os.kill(server.pid, signal.SIGKILL)
    server.join()
    wait_for(lambda: has_ended(worker))


def test_workers_share_the_cores_unless_the_environment_says_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [worker_threads(count) for count in (1, 3, 16)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert worker_threads(3) == 8
