"""Workers that are processes of this machine, each with a GPU of its own, or a share of the cores.

The server holds a pipe to each for every lane, and one more that tells the worker when the server is gone, however it
went: the worker then ends at once. A worker that dies is replaced.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from codebrush.progress import Progress
from codebrush.serving.job import Job
from codebrush.serving.library import Library
from codebrush.serving.log import log_failure, logged_to_stderr
from codebrush.serving.threads import worker_threads
from codebrush.serving.work.kinds import SPREAD
from codebrush.serving.workers.crew import END_SECONDS, Crew
from codebrush.serving.workers.task import BEGUN, Order, Results, Task, WorkerLost, follow
from codebrush.serving.workers.worker import Worker
from codebrush.warned import Listener

VISIBLE_VARIABLES = (*(["HIP_VISIBLE_DEVICES"] if torch.version.hip else []), "CUDA_VISIBLE_DEVICES")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
READY = "ready"


@dataclass
class _Process:
    process: BaseProcess
    control: Connection  # the names of packs to close, None to end; it says READY
    lanes: dict[str, Connection]
    has_ended: threading.Event = field(default_factory=threading.Event)


class Processes(Crew[_Process]):
    """`count` processes that work with `weights`."""

    def __init__(self, count: int, library: Library, weights: str = "auto", context: BaseContext | None = None) -> None:
        super().__init__(count)
        self._context: Any = context or multiprocessing.get_context("spawn")
        self._arguments = (torch.cuda.device_count(), worker_threads(count), library, weights)

    def begin(self, number: int) -> _Process:
        """See `Crew`."""
        control, its_control = self._context.Pipe()
        pairs = {lane: self._context.Pipe() for lane in SPREAD}
        theirs = {lane: pair[1] for lane, pair in pairs.items()}
        process = self._context.Process(target=work, args=(number, its_control, theirs, *self._arguments))
        resource_tracker.ensure_running()  # it lets the signals through when it starts
        # Of the new process, too, until it ignores them. A fork server would block them in all that it starts.
        blocked = SIGNALS if self._context.get_start_method() == "spawn" else ()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for each in (its_control, *theirs.values()):  # so that the pipes end with the process
            each.close()
        return _Process(process, control, {lane: pair[0] for lane, pair in pairs.items()})

    def until_ready(self, one: _Process) -> dict[str, Any]:
        """See `Crew`."""
        _received(one.control)
        return {"process": one.process.pid}

    def until_lost(self, one: _Process) -> dict[str, Any]:
        """See `Crew`."""
        with suppress(WorkerLost):
            _received(one.control)  # nothing comes but the end
        one.process.join()
        one.has_ended.set()
        return {"process": one.process.pid, "status": one.process.exitcode}

    def work(
        self, one: _Process, lane: str, task: Task, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        """See `Crew`."""
        connection = one.lanes[lane]
        _sent(connection, task)
        try:
            return follow(lambda: _received(connection), lambda order: _sent(connection, order), batch, progress, tell)
        except WorkerLost:
            one.has_ended.wait(END_SECONDS)  # a process that is being ended may close its pipes before its locked files
            raise

    def forget(self, one: _Process, pack: str) -> None:
        """See `Crew`."""
        _sent(one.control, pack)

    def end(self, one: _Process, now: bool) -> None:
        """See `Crew`."""
        if now:
            one.process.kill()
        else:
            _sent(one.control, None)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError) as error:  # nothing, or not all of a message
        raise WorkerLost from error


def _sent(connection: Connection, message: Any) -> None:
    with suppress(OSError):  # its end is noticed where it is read from
        connection.send(message)


def work(
    number: int,
    control: Connection,
    lanes: dict[str, Connection],
    gpus: int,
    threads: int,
    library: Library,
    weights: str,
) -> None:
    """Called in the new process. Signals are the server's: it lets this process finish."""
    _see_one_gpu(number, gpus)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    warnings.simplefilter("ignore")  # as in the server: callers hear of theirs
    torch.set_num_threads(threads)
    worker = Worker(library, weights)
    for connection in lanes.values():
        threading.Thread(target=_work_on, args=(worker, connection), daemon=True).start()
    with suppress(EOFError, OSError):  # the server is gone
        control.send(READY)
        while (pack := control.recv()) is not None:
            worker.close(pack)
    os._exit(0)


def _see_one_gpu(number: int, count: int) -> None:
    """Leave this process one of the `count` GPUs that the server may use, dealt out in turn. Torch must not have been
    asked for them here before."""
    if count:
        visible = next((os.environ[each] for each in VISIBLE_VARIABLES if os.environ.get(each)), None)
        names = [str(each) for each in range(count)] if visible is None else visible.split(",")
        os.environ.update(dict.fromkeys(VISIBLE_VARIABLES, names[number % count]))


def _work_on(worker: Worker, connection: Connection) -> None:
    """Work on the tasks of a lane. What goes wrong outside of the work itself ends the process: else the server would
    wait for ever."""

    def orders() -> Iterator[Order]:
        while connection.poll():
            yield connection.recv()

    try:
        while True:
            task = connection.recv()
            if isinstance(task, Task):  # else an order that came when the last one was done
                worker.work(task, connection.send, orders)
    except (EOFError, OSError):  # the server is gone
        pass
    except Exception as error:  # such as a result that cannot be sent
        _sent(connection, BEGUN)  # also of a task that could not be read: it is not to be sent for ever
        with logged_to_stderr():
            log_failure(error)
    os._exit(1)
