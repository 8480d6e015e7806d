"""A server's workers on Ray draw the pictures of a single process, both at once; one that is killed costs nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.distributed.cluster import Cluster
from codebrush.distributed.serving import RayWorkers, _Actor
from codebrush.errors import CodebrushError
from codebrush.serving.job import Job
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.workers.task import BEGUN, STOP, Event, PackPlace, Task
from engine_helpers import ended, guided, pixels, request, wait_until


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_actor_says_what_happens_and_stops_when_it_is_told(micro_pack: Path, tmp_path: Path) -> None:
    actor = _Actor({}, Library((), tmp_path), "auto")
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    job = Job("generate", "micro", "ann", guided(steps=100_000), tmp_path / "job")
    job.folder.mkdir()
    events = actor.work(3, Task.of(brush, [job]))
    said = [next(events), next(events)]
    assert said[0] == BEGUN
    assert said[1][:3] == ("progress", 1, 100_000)
    actor.order(3, STOP)
    said += events
    assert said[-1] == ("stopped",)
    actor.order(3, STOP)  # too late, which does no harm


def test_an_actor_says_that_it_cannot_read_a_task(tmp_path: Path) -> None:
    actor = _Actor({}, Library((), tmp_path), "auto")
    events = actor.work(1, Task("generate", PackPlace("micro", tmp_path, ""), [{"no": "job"}]))
    said: list[Event] = []
    thread = threading.Thread(target=lambda: said.extend(events), daemon=True)
    thread.start()
    thread.join(60)
    assert [event[0] for event in said] == ["begun", "failed"]


def test_an_actor_that_cannot_see_the_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(CodebrushError, match="name a folder as --data that all machines share"):
        _Actor({}, Library((), tmp_path / "elsewhere"), "auto")


class Full(RayWorkers):
    """Those of a cluster that takes none."""

    def begin(self, number: int) -> Any:
        raise OSError


def test_a_cluster_that_starts_no_worker_is_one_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("codebrush.distributed.serving.PATIENCE", 0.01)
    workers = Full(Cluster(2, 0), Library((), tmp_path), "auto")
    workers.start(lambda number, is_ready: None)
    wait_for(lambda: "no worker ready" in caplog.text)
    assert caplog.text.count("the cluster may have no free processor, and is waited for") == 1
    workers.stop()


@pytest.mark.long
def test_two_workers_draw_what_one_process_draws_although_one_is_killed(
    cluster: Cluster, micro_pack: Path, tmp_path: Path
) -> None:
    import ray

    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    workers = RayWorkers(cluster, Library((), tmp_path), "auto")
    engine = Engine({"micro": lambda: brush}, Store(tmp_path), workers=workers)
    engine.start()
    wait_for(lambda: all(engine.workers))
    places = [ray.get(workers._ready[number].about.remote()) for number in range(2)]
    busy = engine.submit("generate", "micro", guided(steps=100_000), "ann")
    wait_until(busy, lambda job: job.step > 0)
    drawn = engine.submit("generate", "micro", request(7), "bob")
    (alone,) = brush.generate(**request(7))
    assert pixels(ended(drawn)) == [alone.image.tobytes()]
    assert read_manifest(drawn.folder / "picture_00.png") == alone.manifest
    assert busy.state == "running"  # by the other worker
    engine.cancel(busy)
    assert ended(busy).state == "cancelled"
    jobs = [engine.submit("generate", "micro", guided(steps=30, previews=2), "ann") for _ in range(2)]
    for job in jobs:
        wait_until(job, lambda job: job.step > 0)
    os.kill(places[0]["process"], signal.SIGKILL)
    guided_alone = brush.generate(**guided(steps=30))[0].image.tobytes()
    assert [pixels(ended(job)) for job in jobs] == [[guided_alone]] * 2
    assert sorted(job.attempts for job in jobs) == [1, 2]
    assert [len(job.shown) for job in jobs if job.attempts == 1] == [2]
    wait_for(lambda: all(engine.workers))
    failed = engine.submit("generate", "micro", request(1, "a dog:1:2:3:4 |"), "ann")
    assert ended(failed).error["code"] == "invalid_value"
    left = engine.submit("generate", "micro", guided(steps=100_000), "ann")
    wait_until(left, lambda job: job.step > 0)
    engine.stop(0)
    assert (left.state, left.attempts) == ("queued", 0)
    assert not any(engine.workers)
