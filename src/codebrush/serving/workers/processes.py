"""Workers that are processes of this machine, each with a GPU of its own, or a share of the cores.

The server holds a pipe to each for every lane, and one more that tells the worker when the server is gone, however it
went: the worker then ends at once. A worker that dies is replaced.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.serving.jobs.job import Job
from codebrush.serving.library import Library
from codebrush.serving.log import log
from codebrush.serving.work.kinds import SPREAD
from codebrush.serving.workers.task import Order, Results, Task, WorkerLost, follow
from codebrush.serving.workers.worker import Worker
from codebrush.warned import Listener

THREADS_VARIABLE = "OMP_NUM_THREADS"
READY = "ready"
END_SECONDS = 5.0  # that a worker has to end when it is told to
MOST_WAIT = 30.0  # seconds until another worker is started, if the last ones did not get as far as being ready


@dataclass
class _Process:
    process: BaseProcess
    control: Connection  # the names of packs to close, None to end; it says READY
    lanes: dict[str, Connection]


class Processes:
    """`count` processes that work with `weights`; see `Workers`."""

    def __init__(self, count: int, library: Library, weights: str = "auto", context: BaseContext | None = None) -> None:
        self.names: Sequence[str] = tuple(map(str, range(count)))
        self._context: Any = context or multiprocessing.get_context("spawn")
        self._arguments = (threads_of_each(count), library, weights)
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # around what is started and ended
        self._all: dict[int, _Process] = {}
        self._ready: dict[int, _Process] = {}
        self._keepers: list[threading.Thread] = []

    def start(self, changed: Callable[[int, bool], None]) -> None:
        """Start them, and others in place of those that die."""
        atexit.register(self.stop)  # else multiprocessing would wait for them at the end of a server that failed
        for number in range(len(self.names)):
            keeper = threading.Thread(target=self._keep, args=(number, changed), name=f"worker-{number}", daemon=True)
            self._keepers.append(keeper)
            keeper.start()

    def is_ready(self, number: int) -> bool:
        """Whether one can be given work."""
        return number in self._ready

    def run(
        self, number: int, lane: str, brush: Codebrush, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        """Let a process work on a batch."""
        one = self._ready.get(number)
        if one is None:
            raise WorkerLost
        connection = one.lanes[lane]
        try:
            _sent(connection, Task.of(brush, batch))
            return follow(lambda: _received(connection), lambda order: _sent(connection, order), batch, progress, tell)
        except WorkerLost:
            if self._ready.get(number) is one:  # sooner than its keeper notices, so that it is given nothing else
                self._ready.pop(number, None)
            raise

    def close(self, pack: str) -> None:
        """Let all forget the models of a pack."""
        for one in list(self._ready.values()):
            _sent(one.control, pack)

    def stop(self) -> None:
        """End all of them."""
        atexit.unregister(self.stop)
        with self._lock:
            self._stopping.set()
            processes = dict(self._all)
        for one in processes.values():
            _sent(one.control, None)
        until = time.monotonic() + END_SECONDS
        for number, keeper in enumerate(self._keepers):
            keeper.join(max(0.0, until - time.monotonic()))
            if keeper.is_alive():
                processes[number].process.kill()
                keeper.join()

    def _keep(self, number: int, changed: Callable[[int, bool], None]) -> None:
        """Keep a worker alive."""
        failed_starts = 0
        while (one := self._start(number)) is not None:
            was_ready = False
            with suppress(EOFError, OSError):
                was_ready = one.control.recv() == READY
                log("worker ready", worker=number, process=one.process.pid)
                self._ready[number] = one
                failed_starts = 0
                changed(number, True)
                one.control.recv()  # nothing comes but the end
            self._ready.pop(number, None)
            one.process.join()
            if self._stopping.is_set():
                return
            log("worker died", worker=number, process=one.process.pid, status=one.process.exitcode)
            changed(number, False)
            if not was_ready:
                failed_starts += 1
                self._stopping.wait(min(2.0**failed_starts, MOST_WAIT))

    def _start(self, number: int) -> _Process | None:
        """A new process; None if all end."""
        control, its_control = self._context.Pipe()
        pairs = {lane: self._context.Pipe() for lane in SPREAD}
        theirs = {lane: pair[1] for lane, pair in pairs.items()}
        process = self._context.Process(target=work, args=(number, its_control, theirs, *self._arguments))
        with self._lock:
            if self._stopping.is_set():
                return None
            process.start()
            one = self._all[number] = _Process(process, control, {lane: pair[0] for lane, pair in pairs.items()})
        for each in (its_control, *theirs.values()):  # so that the pipes end with the process
            each.close()
        return one


def threads_of_each(count: int) -> int:
    """How many threads each of `count` workers has: those that OMP_NUM_THREADS says, or else its share of the cores."""
    return torch.get_num_threads() if THREADS_VARIABLE in os.environ else max(1, torch.get_num_threads() // count)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError) as error:  # nothing, or not all of a message
        raise WorkerLost from error


def _sent(connection: Connection, message: Any) -> None:
    with suppress(OSError):  # its end is noticed where it is read from
        connection.send(message)


def work(
    number: int, control: Connection, lanes: dict[str, Connection], threads: int, library: Library, weights: str
) -> None:
    """Called in the new process. Signals are the server's: it lets this process finish."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # as in the server: callers hear of theirs
    _see_one_gpu(number)
    torch.set_num_threads(threads)
    worker = Worker(library, weights)
    for connection in lanes.values():
        threading.Thread(target=_work_on, args=(worker, connection), daemon=True).start()
    with suppress(EOFError, OSError):  # the server is gone
        control.send(READY)
        while (pack := control.recv()) is not None:
            worker.close(pack)
    os._exit(0)


def _see_one_gpu(number: int) -> None:
    """Leave this process one of the GPUs that it may use, if there are any: they are dealt out in turn."""
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if visible != [""] else [str(each) for each in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % count]


def _work_on(worker: Worker, connection: Connection) -> None:
    """Work on the tasks of a lane."""

    def orders() -> Iterator[Order]:
        while connection.poll():
            yield connection.recv()

    with suppress(EOFError, OSError):  # the server is gone
        while True:
            task = connection.recv()
            if isinstance(task, Task):  # else an order that came when the last one was done
                worker.work(task, connection.send, orders)
