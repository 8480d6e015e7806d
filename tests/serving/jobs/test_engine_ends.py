"""How jobs end: cancelled at any moment, cancelled while they save, on a full disk, and forgotten on an idle server."""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')

import sqlalchemy
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.files import write_errors
from codebrush.progress import Progress
from codebrush.serving.faults import NO_SPACE
from codebrush.serving.job import Job, JobError, QueueFull, Stopped
from codebrush.serving.jobs import engine as engine_module
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.limits import Limits
from codebrush.serving.jobs.store import Store
from codebrush.serving.work.kinds import KINDS, LOOK, READ, Kind
from codebrush.serving.workers.here import Here
from codebrush.serving.workers.task import Results, WorkerLost
from codebrush.warned import Listener
from engine_helpers import ended, guided, make_engine, pixels, request, wait_until


@pytest.fixture
def engine(served_brush: Codebrush, tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(served_brush, tmp_path / "data", queue=600, batch=4)
    yield made
    made.stop(0)


def steps(count: int) -> Callable[..., Any]:
    """The work of a job that takes so many steps."""

    def run(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
        for step in range(1, count + 1):
            progress(step, count)
        return [{} for _ in jobs]

    return run


class Saving:
    """The work of a job that goes on until it is stopped, and then saves for as long as `saved` is not set."""

    def __init__(self) -> None:
        self.saved = threading.Event()

    def __call__(self, brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
        try:
            while True:
                progress(1, 2)
                time.sleep(0.01)
        except Stopped:
            self.saved.wait(60)
            raise


def kept(engine: Engine, job: Job) -> str:
    row = engine.store.find(job.id)
    assert row is not None
    return row["state"]


def test_a_job_is_cancelling_until_its_work_has_ended(engine: Engine) -> None:
    work = Saving()
    engine.kinds["saves"] = Kind(work)
    job = engine.submit("saves", "micro", {}, "ann")
    engine.start()
    wait_until(job, lambda job: job.step == 1)
    engine.cancel(job)
    assert (job.state, kept(engine, job), engine.live("saves")) == ("cancelling", "cancelling", [job])
    engine.cancel(job)  # again
    assert engine.find(job.id) is job
    work.saved.set()
    assert (ended(job).state, kept(engine, job), engine.live("saves")) == ("cancelled", "cancelled", [])


def test_a_job_that_was_cancelled_before_a_kill_is_not_done_by_the_next_server(
    served_brush: Codebrush, tmp_path: Path
) -> None:
    engine, work = make_engine(served_brush, tmp_path), Saving()
    engine.kinds["saves"] = Kind(work)
    job = engine.submit("saves", "micro", {}, "ann")
    engine.start()
    wait_until(job, lambda job: job.step == 1)
    engine.cancel(job)
    row = engine.store.find(job.id)  # as a killed server leaves it
    work.saved.set()
    ended(job)
    engine.store.change(job.id, **{name: row[name] for name in ("state", "finished")})
    engine.stop()
    again = make_engine(served_brush, tmp_path)
    assert again.find(job.id).state == "cancelled"
    assert again.waiting == 0
    again.stop()


def test_a_job_that_is_left_to_the_next_server_can_still_be_cancelled(served_brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(served_brush, tmp_path)
    jobs = [engine.submit("generate", "micro", request(seed), "ann") for seed in range(2)]
    engine.kinds["generate"] = Kind(Saving())
    engine.kinds["generate"].run.saved.set()
    engine.start()
    wait_until(jobs[0], lambda job: job.step == 1)
    engine._running.abandoned = True  # what stop() does when its grace is over
    engine.begin_stop()
    wait_until(jobs[0], lambda job: job.state == "queued")
    for job in jobs:  # one that was begun, and one that waits
        engine.cancel(job)
        assert (job.state, kept(engine, job)) == ("cancelled", "cancelled")
    engine.stop()
    again = make_engine(served_brush, tmp_path)
    assert [again.find(job.id).state for job in jobs] == ["cancelled", "cancelled"]
    again.stop()


def test_a_job_that_is_done_just_when_it_is_cancelled_is_kept_as_it_is_told(engine: Engine) -> None:
    engine.kinds["short"] = Kind(steps(3))
    job = engine.submit("short", "micro", {}, "ann")
    finish, cancels = engine.store.finish, []

    def cancelled_meanwhile(*given: Any, **more: Any) -> None:
        cancels.append(threading.Thread(target=engine.cancel, args=(job,)))
        cancels[0].start()
        finish(*given, **more)

    engine.store.finish = cancelled_meanwhile
    engine.start()
    ended(job)
    cancels[0].join()
    assert (job.state, kept(engine, job)) == ("done", "done")


def test_no_job_is_lost_however_it_is_cancelled(engine: Engine) -> None:
    engine.kinds["short"] = Kind(steps(8), group=lambda request: "all")
    engine.start()
    chance, jobs, cancels = random.Random(3), [], []
    for number in range(120):
        job = engine.submit("short", "micro", {}, f"caller {number % 5}")
        jobs.append(job)
        if chance.random() < 0.6:
            late = chance.random() * 0.01
            cancels.append(threading.Timer(late, lambda job=job: (engine.cancel(job), engine.cancel(job))))
            cancels[-1].start()
    for cancel in cancels:
        cancel.join()
    for job in jobs:
        assert ended(job).state in ("done", "cancelled")
        assert kept(engine, job) == job.state
        assert engine.find(job.id).state == job.state
    assert engine.live("short") == []
    assert engine.waiting == 0


def test_what_was_shown_is_not_shown_again_when_a_batch_is_tried_one_by_one(engine: Engine) -> None:
    def run(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
        for step in range(1, 4):
            for job in jobs:
                job.show([Image.new("L", (8, 8), 50 * step)], step)
            if step == 2 and len(jobs) > 1:
                raise ValueError("together they cannot be drawn")
            progress(step, 3)
        return [{} for _ in jobs]

    engine.kinds["drawn"] = Kind(run, group=lambda request: "all")
    jobs = [engine.submit("drawn", "micro", {}, owner) for owner in ("ann", "bob")]
    engine.start()
    for job in map(ended, jobs):
        assert (job.state, len(job.shown)) == ("done", 3)
        assert len({picture for (picture,) in job.shown}) == 3


class Dying(Here):
    """It lives for two steps of a batch, between which the caller of the first job goes away."""

    def run(
        self, number: int, lane: str, brush: Codebrush, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        if len(batch) > 1:
            progress(1, 3)
            self.engine.cancel(batch[0])
            progress(2, 3)
            raise WorkerLost
        return super().run(number, lane, brush, batch, progress, tell)

    engine: Engine


def test_a_job_that_has_ended_is_not_ended_again_when_its_worker_dies(served_brush: Codebrush, tmp_path: Path) -> None:
    kinds = {"generate": Kind(steps(3), group=lambda request: "all")}
    workers = Dying(kinds)
    engine = Engine({"micro": lambda: served_brush}, Store(tmp_path), Limits(batch=2), workers=workers)
    workers.engine, engine.kinds["generate"] = engine, kinds["generate"]
    jobs = [engine.submit("generate", "micro", {}, owner) for owner in ("ann", "bob")]
    engine.start()
    assert [ended(job).state for job in jobs] == ["cancelled", "done"]
    engine.stop(0)
    counted = [line for line in engine.metrics.text().decode().splitlines() if line.startswith("codebrush_jobs_total")]
    assert sorted(line.split()[-1] for line in counted) == ["1.0", "1.0"]


class Gone(Here):
    """Twice it has died before it could begin."""

    times = 0

    def run(
        self, number: int, lane: str, brush: Codebrush, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        self.times += 1
        if self.times < 3:
            raise WorkerLost
        return super().run(number, lane, brush, batch, progress, tell)


def test_a_worker_that_died_before_it_began_a_job_is_no_attempt_at_it(served_brush: Codebrush, tmp_path: Path) -> None:
    workers = Gone(KINDS)
    engine = Engine({"micro": lambda: served_brush}, Store(tmp_path), workers=workers)
    job = engine.submit("generate", "micro", request(), "ann")
    engine.start()
    assert (ended(job).state, job.attempts) == ("done", 1)
    engine.stop(0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
@pytest.mark.parametrize("told", [True, False], ids=["as a user error", "as it is"])
def test_a_full_disk_is_the_servers_trouble_and_no_path_is_told(engine: Engine, tmp_path: Path, told: bool) -> None:
    def run(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
        (tmp_path / "picture.png").symlink_to("/dev/full")
        if not told:
            (tmp_path / "picture.png").write_text("a picture")
        with write_errors(tmp_path / "picture.png"):
            (tmp_path / "picture.png").write_text("a picture")
        return [{}]

    engine.kinds["writes"] = Kind(run)
    job = engine.submit("writes", "micro", {}, "ann")
    engine.start()
    assert ended(job).error == NO_SPACE
    assert str(tmp_path) not in NO_SPACE["message"]


def test_a_full_database_is_told_and_what_became_of_the_jobs_is_kept_later(engine: Engine) -> None:
    engine.kinds["large"] = Kind(lambda brush, jobs, progress: [{"text": "x" * 100_000} for _ in jobs])
    full = True

    @sqlalchemy.event.listens_for(engine.store._connections, "checkout")
    def bound(connection: Any, *_: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0] if full else 2**30
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    job = engine.submit("large", "micro", {}, "ann")
    engine.start()
    assert ended(job).error == NO_SPACE
    assert engine.find(job.id).error == NO_SPACE
    with pytest.raises(sqlalchemy.exc.OperationalError, match="full"):
        engine.submit("large", "micro", {"text": "x" * 100_000}, "ann")
    assert list((engine.store.data / "jobs").iterdir()) == [job.folder]
    assert engine.live("large") == []
    full = False
    engine._forget_old()
    assert engine.store.find(job.id)["error"] == NO_SPACE


def test_old_results_are_forgotten_though_a_full_database_takes_nothing_new(engine: Engine) -> None:
    old = Job("generate", "micro", "ann", {}, engine.store.folder("old"), id="old")
    old.folder.mkdir()
    engine.store.add({**old.row(), "state": "done"})
    engine.store.change("old", finished=time.time() - 10 * engine.limits.keep_seconds)
    full = "CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    with engine.store._connections.begin() as connection:
        connection.execute(sqlalchemy.text(full))
    engine.kinds["short"] = Kind(steps(3))
    job = engine.submit("short", "micro", {}, "ann")
    engine.start()
    assert ended(job).error == NO_SPACE
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError, match="full"):
        engine._forget_old()
    assert not old.folder.exists()
    assert engine.store.find("old") is None


def test_a_server_starts_though_it_cannot_forget(engine: Engine) -> None:
    engine.store.add(
        {**Job("generate", "micro", "ann", {}, engine.store.folder("old"), id="old").row(), "state": "done"}
    )
    engine.store.change("old", finished=time.time() - 10 * engine.limits.keep_seconds)
    locked = "CREATE TRIGGER locked BEFORE DELETE ON jobs BEGIN SELECT RAISE(FAIL, 'database is locked'); END"
    with engine.store._connections.begin() as connection:
        connection.execute(sqlalchemy.text(locked))
    engine.kinds["short"] = Kind(steps(3))
    engine.start()
    assert ended(engine.submit("short", "micro", {}, "ann")).state == "done"


def test_a_caller_who_writes_of_a_full_disk_is_to_blame(engine: Engine) -> None:
    job = engine.submit("generate", "micro", request(size="no space left on device"), "ann")
    engine.start()
    assert "no space left on device" in ended(job).error["message"]
    assert job.error["code"] == "invalid_value"


def test_lines_for_callers_have_no_paths_of_the_server(engine: Engine, tmp_path: Path) -> None:
    data, pack = engine.store.data, engine.brush("micro").pack.folder
    said = engine.plain(f"{data}/jobs/a/x.png and {data}/packs/mine and {data} and {pack}/clip: damaged")
    assert said == "jobs/a/x.png and mine and the server's folder and micro/clip: damaged"
    place = engine.brush("micro").pack.info["members"]
    elsewhere = {**place, "clip": str(tmp_path / "elsewhere")}
    engine.brush("micro").pack.info["members"] = elsewhere
    try:
        assert engine.plain(f"{tmp_path}/elsewhere is damaged") == "micro/clip is damaged"
    finally:
        engine.brush("micro").pack.info["members"] = place


def test_a_refused_job_leaves_no_files(served_brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(served_brush, tmp_path, queue=1)
    engine.submit("generate", "micro", request(), "ann", {"picture": b"1"})
    with pytest.raises(QueueFull):
        engine.submit("generate", "micro", request(), "bob", {"picture": b"2"})
    assert [path.read_bytes() for path in (tmp_path / "jobs").glob("*/*")] == [b"1"]
    engine.stop()


def test_results_are_forgotten_when_nobody_calls(
    served_brush: Codebrush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "TIDY_SECONDS", 0.02)
    engine = make_engine(served_brush, tmp_path, keep_seconds=600)
    engine.start()
    for name, age in (("old", 1000), ("new", 100)):
        job = Job("generate", "micro", "ann", {}, engine.store.folder(name), id=name)
        job.folder.mkdir()
        engine.store.add(job.row())
        engine.store.change(name, state="done", finished=time.time() - age)
    for _ in range(3000):
        if engine.store.find("old") is None:
            break
        time.sleep(0.02)
    assert engine.store.find("old") is None
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["new"]
    engine.stop()


def test_a_look_through_a_source_waits_for_no_index_and_no_question_for_it(engine: Engine) -> None:
    work = Saving()
    engine.kinds |= {"index": Kind(work, lane=engine.kinds["index"].lane), "look": Kind(steps(1), lane=LOOK)}
    assert (engine.kinds["check"].lane, engine.kinds["search"].lane) == (LOOK, READ)
    index = engine.submit("index", "micro", {}, "ann")
    engine.start()
    wait_until(index, lambda job: job.step == 1)
    assert ended(engine.submit("look", "micro", {}, "ann")).state == "done"
    assert index.state == "running"
    engine.cancel(index)
    work.saved.set()
    ended(index)


def test_a_second_training_of_a_name_is_refused_however_close_they_come(engine: Engine) -> None:
    asked = {"name": "mine", "source": "shapes", "captions": [], "seconds": 60.0}
    first = engine.submit("train", "micro", asked, "ann")
    with pytest.raises(JobError, match="'mine' is being trained") as refused:
        engine.submit("train", "micro", asked, "bob")
    assert refused.value.code == "name_taken"
    first.state = "cancelling"
    with pytest.raises(JobError, match="'mine' is being stopped, and saves: try again when it has"):
        engine.submit("train", "micro", {**asked, "resume": True}, "ann")


def test_a_guided_picture_names_its_start_picture_without_the_way_to_it(engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    start = (tmp_path / "a.png").read_bytes()
    asked = {**guided(steps=2), "start": "start.png"}
    del asked["init"]
    job = engine.submit("generate", "micro", asked, "ann", {"start.png": start})
    engine.start()
    assert ended(job).state == "done", job.error
    picture = job.folder / job.result["images"][0]["file"]
    manifest = read_manifest(picture)
    assert manifest["options"]["init"] == "start.png"
    assert manifest["files"] == {"start.png": hashlib.sha256(start).hexdigest()}
    assert str(tmp_path) not in json.dumps(manifest)
    assert job.id not in json.dumps(manifest)
    again = engine.brush("micro").replay(manifest, [tmp_path / "a.png"])
    assert again.image.tobytes() == pixels(job)[0]
