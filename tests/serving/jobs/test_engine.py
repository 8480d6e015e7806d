"""The engine: batches that change no pixel, turns, bounds, cancelling, limits, and what a stop or a kill leaves."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.errors import CodebrushError
from codebrush.progress import Progress
from codebrush.serving.job import Job, JobError, QueueFull
from codebrush.serving.jobs import engine as engine_module
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.queue import FairQueue
from codebrush.serving.jobs.store import Store
from codebrush.serving.work.kinds import READ, Kind
from engine_helpers import (
    ended,
    error_of,
    found,
    guided,
    make_engine,
    pixels,
    request,
    result_of,
    wait_until,
)
from packs import micro_flow, micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@pytest.fixture
def engine(brush: Codebrush, tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(brush, tmp_path, queue=16)
    yield made
    made.stop()


def batches(engine: Engine) -> dict[str, float]:
    """How many batches there were, and of how many jobs in all."""
    lines = engine.metrics.text().decode().splitlines()
    return {
        name: float(line.split()[1]) for name in ("count", "sum") for line in lines if f"batch_jobs_{name} " in line
    }


def test_jobs_of_many_callers_are_one_batch_and_each_gets_its_own_pictures(engine: Engine, brush: Codebrush) -> None:
    asked = [("ann", request(7)), ("ann", request(8)), ("bob", request(7, "a blue square")), ("cid", request(2**40))]
    jobs = [engine.submit("generate", "micro", each, owner) for owner, each in asked]
    other = engine.submit("generate", "micro", request(7, n=2), "ann")  # other options: a batch of its own
    engine.start()
    for job in map(ended, (*jobs, other)):
        alone = brush.generate(job.request["prompt"], seed=job.request["seed"], n=job.request["n"], rerank=2)
        assert pixels(job) == [result.image.tobytes() for result in alone]
        files = [job.folder / each["file"] for each in result_of(job)["images"]]
        assert [read_manifest(file) for file in files] == [result.manifest for result in alone]
    assert batches(engine) == {"count": 2, "sum": 5}
    assert jobs[0].step == jobs[0].of == 64


def test_jobs_of_a_flow_are_drawn_one_after_the_other(tmp_path: Path) -> None:
    pack = write_micro_pack(tmp_path / "micro", transformer=micro_transformer(), flow=micro_flow(), painter="flow")
    engine = make_engine(Codebrush.from_pretrained(pack, "cpu"), tmp_path / "data")
    asked = [request(1), request(2), request(3, method="sample"), request(4, method="sample")]
    jobs = [engine.submit("generate", "micro", each, "ann") for each in asked]
    engine.start()
    try:
        assert [ended(job).state for job in jobs] == ["done"] * 4
        made = [read_manifest(job.folder / "picture_00.png")["method"] for job in jobs]
        assert made == ["flow", "flow", "sample", "sample"]
        assert batches(engine) == {"count": 3, "sum": 4}  # codes alone gain by a common batch
    finally:
        engine.stop(5)


def test_a_job_that_fails_takes_no_other_with_it(engine: Engine) -> None:
    good, bad = request(1), request(1, "a dog:1:2:3:4 |")
    jobs = [engine.submit("generate", "micro", each, "ann") for each in (good, bad, good)]
    engine.start()
    assert [ended(job).state for job in jobs] == ["done", "failed", "done"]
    assert jobs[1].error is not None
    assert jobs[1].error["code"] == "invalid_value"
    assert found(engine, jobs[1]).error == jobs[1].error
    assert pixels(jobs[0]) == pixels(jobs[2])


def test_what_is_no_callers_fault_is_told_in_general(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, brush: Codebrush
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret prompt")

    monkeypatch.setattr(Codebrush, "generate", broken)
    job = engine.submit("generate", "micro", request(1, "a secret prompt"), "ann")
    engine.start()
    assert ended(job).error == {
        "code": "internal_error", "message": "something went wrong in the server; its log says what"
    }  # fmt: skip
    logged = caplog.text
    assert "ZeroDivisionError" in logged
    assert "test_engine.py" in logged
    assert "secret" not in logged


def test_callers_take_turns() -> None:
    queue = FairQueue(lambda job: None)
    for owner, name in [("ann", "1"), ("ann", "2"), ("ann", "3"), ("bob", "4"), ("cid", "5"), ("bob", "6")]:
        queue.add(Job(name, "micro", owner, {}, Path()))
    order = []
    while len(queue):
        order += [job.kind for job in queue.take(8)]
    assert order == ["1", "4", "5", "2", "6", "3"]


def test_a_batch_takes_one_of_each_caller_first() -> None:
    queue = FairQueue(lambda job: job.kind)
    for owner, kind in [("ann", "a"), ("ann", "a"), ("ann", "a"), ("bob", "b"), ("bob", "a"), ("cid", "a")]:
        queue.add(Job(kind, "micro", owner, {}, Path()))
    assert [job.owner for job in queue.take(4)] == ["ann", "bob", "cid", "ann"]
    assert [(job.owner, job.kind) for job in queue] == [("bob", "b"), ("ann", "a")]


def test_the_queue_is_bounded_and_keeps_places_for_others(engine: Engine) -> None:
    for _ in range(14):  # of 16, as two places are for others
        engine.submit("generate", "micro", request(), "ann")
    with pytest.raises(QueueFull, match="the queue is full: try again in 2 s") as refused:
        engine.submit("generate", "micro", request(), "ann")
    assert refused.value.retry_after == 2
    for owner in ("bob", "cid"):
        engine.submit("generate", "micro", request(), owner)
    with pytest.raises(QueueFull):
        engine.submit("generate", "micro", request(), "dan")


def test_an_unknown_pack_is_refused(engine: Engine) -> None:
    with pytest.raises(JobError, match="no model 'dall-e-3': there are micro"):
        engine.submit("generate", "dall-e-3", request(), "ann")


def test_a_waiting_and_a_running_job_are_cancelled(engine: Engine) -> None:
    running = engine.submit("generate", "micro", guided(steps=500), "ann")
    waiting = engine.submit("generate", "micro", request(), "ann")
    engine.start()
    wait_until(running, lambda job: job.step >= 2)
    assert running.of == 500
    assert running.seconds_left is not None
    engine.cancel(waiting)
    assert waiting.state == "cancelled"
    engine.cancel(running)
    assert ended(running).state == "cancelled"
    assert found(engine, running).state == "cancelled"
    assert running.step < 500


def test_short_questions_do_not_wait_for_a_drawing_and_change_no_pixel_of_it(engine: Engine, brush: Codebrush) -> None:
    drawing, read = engine.submit("generate", "micro", guided(steps=20), "ann"), threading.Event()

    def pause_at_step_10() -> None:  # so that it ends no sooner
        if drawing.step == 10:
            read.wait(60)

    drawing.listen(pause_at_step_10)
    engine.start()
    wait_until(drawing, lambda job: job.step >= 1)
    asked = {"inputs": [{"text": "a red circle"}], "max_pixels": 1000}
    reading = ended(engine.submit("embed", "micro", asked, "bob"))
    assert drawing.step <= 10  # whose end nobody waited for
    read.set()
    vectors = np.fromfile(reading.folder / result_of(reading)["file"], dtype="<f4")
    assert vectors.tolist() == brush.embed_text("a red circle")[0].tolist()
    assert pixels(ended(drawing)) == [brush.generate(**guided(steps=20))[0].image.tobytes()]


def test_lanes_share_the_weights_of_a_pack_but_no_hooks(engine: Engine) -> None:
    drawing, reading = engine.brush("micro").clip, engine.brush("micro", READ).clip
    drawn, read = dict(drawing.named_parameters()), dict(reading.named_parameters())
    assert drawn.keys() == read.keys()
    assert all(drawn[name] is read[name] for name in drawn)
    pairs = zip(drawing.modules(), reading.modules(), strict=True)
    assert not any(one is other for one, other in pairs)


def test_a_job_ends_at_the_time_limit(brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(brush, tmp_path, seconds=0.2)
    job = engine.submit("generate", "micro", guided(steps=5000), "ann")
    engine.start()
    assert ended(job).error == {
        "code": "time_limit", "message": "it took longer than the limit of 0.2 s: ask for less"
    }  # fmt: skip
    engine.stop()


def test_half_drawn_pictures_are_shown(engine: Engine) -> None:
    jobs = [
        engine.submit("generate", "micro", request(previews=2), "ann"),
        engine.submit("generate", "micro", guided(steps=6, previews=2), "ann"),
    ]
    engine.start()
    for job in map(ended, jobs):
        assert [len(pictures) for pictures in job.shown] == [1, 1]
        assert job.shown[0] != job.shown[1]
        assert job.shown[0][0].startswith(b"\x89PNG")


def test_what_a_stopped_server_leaves_is_done_by_the_next(brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(brush, tmp_path)
    running = engine.submit("generate", "micro", guided(steps=8), "ann")
    waiting = engine.submit("generate", "micro", request(3), "ann")

    def leave_at_step_3() -> None:
        engine._running.abandoned |= running.step >= 3  # what stop() does when its grace is over

    running.listen(leave_at_step_3)
    engine.start()
    wait_until(running, lambda job: job.step >= 3)
    engine.stop()
    with pytest.raises(JobError, match="about to stop"):
        engine.submit("generate", "micro", request(), "ann")
    assert (running.state, waiting.state) == ("queued", "queued")
    assert (running.folder / "run" / "run.json").exists()

    again = make_engine(brush, tmp_path)
    steps: list[int] = []
    again.start()
    known = found(again, running)
    known.listen(lambda: steps.append(known.step))
    assert pixels(ended(known)) == [brush.generate(**guided(steps=8))[0].image.tobytes()]
    assert next(step for step in steps if step) > running.step  # it went on, and did not begin anew
    assert len(result_of(known)["losses"]) == len(known.losses) == 8
    assert pixels(ended(found(again, waiting))) == [brush.generate(**request(3))[0].image.tobytes()]
    assert not (running.folder / "run").exists()
    again.stop()


def test_a_job_that_notices_no_stop_is_left_to_the_next_server_as_not_begun(
    brush: Codebrush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step takes too long: that the server stopped is not its fault, however often."""
    monkeypatch.setattr(engine_module, "LAST_STEP", 0.1)
    monkeypatch.setattr(engine_module, "LAST_WORD", 0.1)
    goes_on = threading.Event()

    def run(_: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
        goes_on.wait(60)
        return [{} for _ in jobs]

    made = make_engine(brush, tmp_path)
    made.kinds["generate"] = Kind(run)
    made.start()
    job = made.submit("generate", "micro", request(prompt="a dog"), "one")
    wait_until(job, lambda job: job.state == "running")
    made.stop(0)
    store = Store(tmp_path)
    assert [(row["state"], row["attempts"]) for row in store.unfinished()] == [("queued", 0)]
    store.close()
    goes_on.set()


def test_a_job_that_killed_the_server_twice_is_given_up(brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(brush, tmp_path)
    jobs = [engine.submit("generate", "micro", request(seed), "ann") for seed in (1, 2)]
    gone = engine.submit("generate", "micro", request(3), "ann")
    for job, attempts in zip(jobs, (1, 2), strict=True):  # as rows are while a job runs
        engine.store.change(job.id, state="running", attempts=attempts)
    engine.store.change(gone.id, pack="another")
    engine.stop()
    again = make_engine(brush, tmp_path)
    again.start()
    assert ended(found(again, jobs[0])).state == "done"
    given_up = found(again, jobs[1])
    assert given_up.state == "failed"
    assert "it was killed 2 times, each with the server or a worker" in error_of(given_up)["message"]
    assert error_of(found(again, gone))["message"] == "the server was started again without the pack 'another'"
    again.stop()


def test_a_worker_outlives_a_store_that_cannot_write(brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(brush, tmp_path)
    works = {name: getattr(engine.store, name) for name in ("change", "finish")}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    engine.start()
    # When a job is taken, and when it ends.
    for name, said in (("change", "it was not begun, as the server"), ("finish", "the result could not be kept")):
        setattr(engine.store, name, fail)
        job = ended(engine.submit("generate", "micro", request(1), "ann"))
        setattr(engine.store, name, works[name])
        assert (error_of(job)["code"], error_of(job)["message"][: len(said)]) == ("internal_error", said)
        assert engine.live("generate") == []
        assert ended(engine.submit("generate", "micro", request(1), "ann")).state == "done"
    engine.stop()


def test_what_ended_a_moment_ago_is_kept_for_its_caller(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = Job("generate", "micro", "ann", {}, store.folder("new"), id="new")
    store.add(job.row())
    store.change("new", state="done", finished=time.time(), size=900)
    assert store.prune(0, 1) == []


def test_results_are_kept_for_a_time_and_up_to_a_size(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, age, size in [("old", 1000, 10), ("large", 300, 900), ("b", 200, 60), ("a", 100, 50)]:
        job = Job("generate", "micro", "ann", {}, store.folder(name), id=name)
        store.folder(name).mkdir()
        store.add(job.row())
        store.change(name, state="done", finished=time.time() - age, size=size)
    waiting = Job("generate", "micro", "ann", {}, store.folder("waiting"), id="waiting", created=0.0)
    store.add(waiting.row())
    assert store.prune(600, 200) == ["large", "old"]
    assert store.prune(600, 100) == ["b"]
    assert [store.find(name) is not None for name in ("a", "b", "waiting")] == [True, False, True]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["a"]
    store.folder("orphan").mkdir()
    store.sweep()
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["a"]
    with pytest.raises(CodebrushError, match="another server keeps its jobs in"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()
