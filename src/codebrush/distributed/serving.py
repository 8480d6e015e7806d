"""The workers of a server on a Ray cluster: each an actor that holds the packs and works on batches that it is sent.

The queue, the limits and the results stay with the server; see docs/decisions/0011-serving-on-ray.md.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from codebrush.distributed.cluster import Cluster, passed_on
from codebrush.distributed.workers import PATIENCE, last_line
from codebrush.errors import CodebrushError
from codebrush.progress import Progress
from codebrush.serving.faults import FaultElsewhere
from codebrush.serving.job import Job
from codebrush.serving.library import Library
from codebrush.serving.log import log
from codebrush.serving.work.kinds import SPREAD
from codebrush.serving.workers.crew import Crew
from codebrush.serving.workers.task import LAST, Event, Order, Results, Task, WorkerLost, follow
from codebrush.serving.workers.worker import Worker
from codebrush.warned import Listener

CALLS = 2 * len(SPREAD) + 2  # at a time to an actor: the tasks and orders of each lane, and that it is waited for


class RayWorkers(Crew[Any]):
    """Those of `cluster`, which work with `weights`."""

    def __init__(self, cluster: Cluster, library: Library, weights: str) -> None:
        import ray

        super().__init__(cluster.workers)
        actor = ray.remote(_Actor).options(num_cpus=1, num_gpus=cluster.gpus, max_concurrency=CALLS)
        self._begin = lambda: actor.remote(passed_on(), library, weights)
        self._numbers = itertools.count()
        self._lack = cluster.lack
        self._patience = threading.Timer(PATIENCE, self._say_if_none)
        self._patience.daemon = True

    def start(self, changed: Callable[[int, bool], None]) -> None:
        """See `Crew`."""
        super().start(changed)
        self._patience.start()

    def stop(self) -> None:
        """See `Crew`."""
        self._patience.cancel()
        super().stop()

    def _say_if_none(self) -> None:
        if not self._ready:
            log("no worker ready", seconds=PATIENCE, reason=self._lack)

    def begin(self, number: int) -> Any:
        """See `Crew`."""
        return self._begin()

    def until_ready(self, one: Any) -> dict[str, Any]:
        """See `Crew`."""
        return _got(one.about.remote())

    def until_lost(self, one: Any) -> dict[str, Any]:
        """See `Crew`."""
        try:
            _got(one.wait.remote())
        except WorkerLost as error:
            return {"reason": str(error)}
        return {}

    def work(
        self, one: Any, lane: str, task: Task, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        """See `Crew`."""
        number = next(self._numbers)
        events = one.work.options(num_returns="streaming").remote(number, task)
        return follow(lambda: _got(next(events)), lambda order: one.order.remote(number, order), batch, progress, tell)

    def forget(self, one: Any, pack: str) -> None:
        """See `Crew`."""
        one.close.remote(pack)

    def end(self, one: Any, now: bool) -> None:
        """See `Crew`."""
        import ray

        if ray.is_initialized():  # else all have ended with it
            ray.kill(one)


def _got(reference: Any) -> Any:
    """What an actor returned. Raises WorkerLost, with the reason, if it has died."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayError as error:
        lost = WorkerLost(last_line(error))
        lost.begun = isinstance(error, RayTaskError)  # also of a task that could not be read
        raise lost from error


class _Actor:
    """A worker in a process of the cluster; several methods run at the same time."""

    def __init__(self, environment: dict[str, str], library: Library, weights: str) -> None:
        os.environ.update(environment)
        if not library.data.is_dir():
            raise CodebrushError(f"a worker cannot see {library.data}: name a folder as --data that all machines share")
        self._worker = Worker(library, weights)
        self._orders: dict[int, SimpleQueue[Order]] = {}

    def about(self) -> dict[str, Any]:
        """Where it is."""
        import ray

        return {"process": os.getpid(), "host": ray.util.get_node_ip_address()}

    def wait(self) -> None:
        """Never returns."""
        threading.Event().wait()

    def work(self, number: int, task: Task) -> Iterator[Event]:
        """Work on a task, under a number, and yield what happens."""
        events: SimpleQueue[Event] = SimpleQueue()
        orders = self._orders[number] = SimpleQueue()

        def given() -> Iterator[Order]:
            while not orders.empty():
                yield orders.get()

        def work() -> None:
            try:
                self._worker.work(task, events.put, given)
            except Exception as error:
                events.put(("failed", FaultElsewhere.of(error)))

        threading.Thread(target=work, daemon=True).start()
        for event in iter(events.get, None):
            yield event
            if event[0] in LAST:
                break
        del self._orders[number]

    def order(self, number: int, order: Order) -> None:
        """An order about the task with a number, which may have ended."""
        if (orders := self._orders.get(number)) is not None:
            orders.put(order)

    def close(self, pack: str) -> None:
        """Forget the models of a pack."""
        self._worker.close(pack)
