"""What goes wrong around the work of workers, and not in it: none of it leaves a job waiting, or a worker missing."""

import os
import shutil
import signal
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')

from worker_stand_ins import end_slowly

from codebrush import Codebrush
from codebrush.serving.job import Job
from codebrush.serving.library import Library
from codebrush.serving.work.kinds import DRAW
from codebrush.serving.workers.processes import Processes, _Process, _see_one_gpu
from codebrush.serving.workers.task import STOP, Event, Order, PackPlace, Results, Task, WorkerLost, follow
from codebrush.serving.workers.worker import Worker
from engine_helpers import guided


class Scarce(Processes):
    """The system has no room for the first process."""

    refused = False

    def begin(self, number: int) -> _Process:
        if not self.refused:
            self.refused = True
            raise OSError("Resource temporarily unavailable")
        return super().begin(number)


def test_a_task_is_lost_when_its_process_has_ended_and_not_before(processes: ForkServerContext, tmp_path: Path) -> None:
    (lane, its_lane), (control, its_control) = processes.Pipe(), processes.Pipe()
    process = processes.Process(target=end_slowly, args=(its_lane, its_control))
    process.start()
    its_lane.close()
    its_control.close()
    workers, one = Processes(1, Library((), tmp_path), context=processes), _Process(process, control, {DRAW: lane})
    keeper = threading.Thread(target=workers.until_lost, args=(one,))
    keeper.start()
    with pytest.raises(WorkerLost):
        workers.work(
            one, DRAW, Task("generate", PackPlace("micro", tmp_path, "micro"), []), [], lambda *_: None, lambda *_: None
        )
    assert one.has_ended.is_set()  # else what it has locked may be locked still
    assert not process.is_alive()
    keeper.join()


def test_signals_for_the_server_do_not_end_a_worker_that_starts(tmp_path: Path) -> None:
    workers = Processes(1, Library((), tmp_path))
    changes: list[bool] = []
    workers.start(lambda number, is_ready: changes.append(is_ready))
    try:
        until = time.monotonic() + 120
        while not changes and time.monotonic() < until:
            if 0 in workers._all:
                os.kill(workers._all[0].process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
            time.sleep(0.05)
        assert changes == [True]
    finally:
        workers.stop()


def test_workers_see_one_of_the_servers_gpus_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(visible: str, count: int) -> list[str]:
        found = []
        for number in range(3):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            _see_one_gpu(number, count)
            found.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return found

    assert seen("", 2) == ["0", "1", "0"]
    assert seen("5,GPU-7", 2) == ["5", "GPU-7", "5"]
    assert seen("", 0) == ["", "", ""]


@pytest.mark.parametrize("stored", [True, False], ids=["at its checkpoint", "from the beginning"])
def test_a_guided_run_that_goes_on_shows_each_preview_once_and_keeps_its_losses(
    served_brush: Codebrush, tmp_path: Path, stored: bool
) -> None:
    job = Job("generate", "micro", "ann", guided(steps=30, previews=2), tmp_path)
    told: list[Event] = []

    def work(stop_at: int) -> None:
        """Let a worker work on it, whose process ends with what it has `told` by then."""

        def orders() -> list[Order]:
            return [STOP] if job_events("progress")[-1:] == [stop_at] else []

        Worker(Library((), tmp_path), "auto").work(Task.of(served_brush, [job]), told.append, orders)

    def job_events(kind: str) -> list[int]:
        return [event[1] for event in told if event[0] == kind]

    def follow_told() -> Results:
        def events() -> Event:
            if not told or told[0] == ("stopped",):
                raise WorkerLost
            return told.pop(0)

        return follow(events, lambda order: None, [job], job.progress, lambda *_: None)

    work(stop_at=15)
    with pytest.raises(WorkerLost) as lost:
        follow_told()
    assert lost.value.begun
    assert (job.step, len(job.shown), len(job.losses)) == (15, 1, 15)
    told.clear()
    job.begin_again()
    if not stored:
        shutil.rmtree(tmp_path / "run")
    work(stop_at=31)
    assert (job_events("progress")[0] > 1) == stored
    (result,) = follow_told()
    assert (job.step, len(job.shown), len(job.losses)) == (30, 2, 30)
    assert job.losses == result["losses"]
    assert len({file for (file,) in job.shown}) == 2


def test_a_worker_that_cannot_be_begun_is_begun_later_and_what_it_cannot_read_ends_it(
    processes: ForkServerContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Scarce(1, Library((), tmp_path), context=processes)
    ready = threading.Event()
    workers.start(lambda number, is_ready: ready.set() if is_ready else None)
    try:
        assert ready.wait(60)
        assert '"error": "OSError"' in caplog.text
        one = workers._ready[0]
        found: list[WorkerLost] = []

        def work() -> None:
            task = Task("generate", PackPlace("micro", tmp_path, ""), [{"no": "job"}])
            for _ in range(2):
                with pytest.raises(WorkerLost) as lost:
                    workers.work(one, DRAW, task, [], lambda *_: None, lambda *_: None)
                found.append(lost.value)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(60)
        assert [lost.begun for lost in found] == [True, False]  # the second was sent to one that had ended
    finally:
        workers.stop()
