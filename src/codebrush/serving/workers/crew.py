"""Keeps a number of workers alive: one that dies is replaced, and what it was working on is told to be lost."""

import atexit
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.serving.job import Job
from codebrush.serving.log import log, log_failure
from codebrush.serving.workers.task import Results, Task, WorkerLost
from codebrush.warned import Listener

END_SECONDS = 5.0  # that workers have to end when they are told to
MOST_WAIT = 30.0  # seconds until another worker is started, if the last ones did not get as far as being ready
T = TypeVar("T")


class Crew(ABC, Generic[T]):
    """`count` workers, each a T; see `Workers`. Those that extend it say how one is begun, given work and ended."""

    def __init__(self, count: int) -> None:
        self.names: Sequence[str] = tuple(map(str, range(count)))
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # around what is begun and ended
        self._all: dict[int, T] = {}
        self._ready: dict[int, T] = {}
        self._keepers: list[threading.Thread] = []

    @abstractmethod
    def begin(self, number: int) -> T:
        """A new worker."""

    @abstractmethod
    def until_ready(self, one: T) -> dict[str, Any]:
        """Wait until a worker is ready for work; returns what the log says of it. Raises WorkerLost if it dies."""

    @abstractmethod
    def until_lost(self, one: T) -> dict[str, Any]:
        """Wait until a worker has died, also one that was never ready; returns what the log says of that."""

    @abstractmethod
    def work(self, one: T, lane: str, task: Task, batch: Sequence[Job], progress: Progress, tell: Listener) -> Results:
        """Let a worker work on a task. Raises WorkerLost if it dies."""

    @abstractmethod
    def forget(self, one: T, pack: str) -> None:
        """Let a worker forget the models of a pack."""

    @abstractmethod
    def end(self, one: T, now: bool) -> None:
        """Let a worker end, which is waited for unless it is to be `now`."""

    def start(self, changed: Callable[[int, bool], None]) -> None:
        """Begin with all of them, and then with others in place of those that die."""
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
        """Let a worker work on a batch. Raises WorkerLost if it dies."""
        one = self._ready.get(number)
        if one is None:
            raise WorkerLost
        try:
            return self.work(one, lane, Task.of(brush, batch), batch, progress, tell)
        except WorkerLost:
            if self._ready.get(number) is one:  # sooner than its keeper notices, so that it is given nothing else
                self._ready.pop(number, None)
                self.end(one, now=True)
            raise

    def close(self, pack: str) -> None:
        """Let all forget the models of a pack."""
        for one in list(self._ready.values()):
            self.forget(one, pack)

    def stop(self) -> None:
        """End all of them."""
        atexit.unregister(self.stop)
        with self._lock:
            self._stopping.set()
            workers = dict(self._all)
        for one in workers.values():
            self.end(one, now=False)
        until = time.monotonic() + END_SECONDS
        for number, keeper in enumerate(self._keepers):
            keeper.join(max(0.0, until - time.monotonic()))
            if keeper.is_alive() and number in workers:
                self.end(workers[number], now=True)
                keeper.join(END_SECONDS)

    def _keep(self, number: int, changed: Callable[[int, bool], None]) -> None:
        """Keep a worker alive."""
        failed_starts = 0
        while not self._stopping.is_set():
            try:
                with self._lock:
                    if self._stopping.is_set():
                        return
                    one = self._all[number] = self.begin(number)
            except Exception as error:  # such as no memory for another process
                log_failure(error, worker=number)
                failed_starts += 1
                self._stopping.wait(min(2.0**failed_starts, MOST_WAIT))
                continue
            try:
                log("worker ready", worker=number, **self.until_ready(one))
                self._ready[number] = one
                failed_starts = 0
                changed(number, True)
            except WorkerLost:
                failed_starts += 1
            lost = self.until_lost(one)
            self._ready.pop(number, None)
            if self._stopping.is_set():
                return
            log("worker died", worker=number, **lost)
            changed(number, False)
            if failed_starts:
                self._stopping.wait(min(2.0**failed_starts, MOST_WAIT))
