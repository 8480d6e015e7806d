"""What goes wrong around the work of workers, and not in it: none of it leaves a job waiting, or a worker missing."""

import threading
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')

from codebrush.serving.library import Library
from codebrush.serving.work.kinds import DRAW
from codebrush.serving.workers.processes import Processes, _Process
from codebrush.serving.workers.task import PackPlace, Task, WorkerLost


class Scarce(Processes):
    """The system has no room for the first process."""

    refused = False

    def begin(self, number: int) -> _Process:
        if not self.refused:
            self.refused = True
            raise OSError("Resource temporarily unavailable")
        return super().begin(number)


def test_a_worker_that_cannot_be_begun_is_begun_later_and_what_it_cannot_read_ends_it(
    processes: ForkServerContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Scarce(1, Library((), tmp_path), context=processes)
    ready = threading.Event()
    workers.start(lambda number, is_ready: ready.set() if is_ready else None)
    try:
        assert ready.wait(60)
        assert '"error": "OSError"' in caplog.text
        lost = threading.Event()

        def work() -> None:
            task = Task("generate", PackPlace("micro", tmp_path, ""), [{"no": "job"}])
            with pytest.raises(WorkerLost):
                workers.work(workers._ready[0], DRAW, task, [], lambda *_: None, lambda *_: None)
            lost.set()

        threading.Thread(target=work, daemon=True).start()
        assert lost.wait(60)
    finally:
        workers.stop()
