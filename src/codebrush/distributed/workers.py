"""Spreads pieces of work over workers, Ray actors that hold a model, and gives those of a worker that dies to another.

A piece counts as done when its result has arrived, so that none is lost, and none is done twice whose result is kept.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from codebrush.distributed.cluster import Cluster, passed_on
from codebrush.errors import CodebrushError
from codebrush.warned import warn

AHEAD = 2  # pieces that a worker has: one that it works on, and the next
PATIENCE = 30.0  # seconds without a worker that is ready, until one line says so
TRIES = 3  # with a piece, and with starting a worker, before the run ends
T = TypeVar("T")


@dataclass(eq=False)
class _Piece(Generic[T]):
    item: T
    tries: int = 0


@dataclass(eq=False)
class _Worker:
    actor: Any
    pieces: deque[Any]  # those that it was given, first come first done
    is_ready: bool = False


def spread(
    cluster: Cluster, kind: type, arguments: tuple[Any, ...], items: Iterator[T], name: Callable[[T], str]
) -> Generator[tuple[T, Any], None, None]:
    """Yield each item with what `kind(*arguments).work(item)` returns in a worker, in the order in which they are done.

    References to objects that Ray holds (`ray.put`) are resolved in `arguments`. `name` is what messages call an item.

    Raises:
        CodebrushError: if workers cannot start, or die again and again at one item; what `work` raises.
    """
    pool = _Pool(cluster, kind, arguments, items, name)
    try:
        yield from pool.results()
    finally:
        pool.end()


class _Pool(Generic[T]):
    def __init__(
        self, cluster: Cluster, kind: type, arguments: tuple[Any, ...], items: Iterator[T], name: Callable[[T], str]
    ) -> None:
        import ray

        self._lack = cluster.lack
        options = {"num_cpus": 1, "num_gpus": cluster.gpus}
        remote = ray.remote(_with_environment(kind)).options(**options)
        self._make = lambda: remote.remote(passed_on(), *arguments)
        self._items, self._name = items, name
        self._again: deque[_Piece[T]] = deque()
        self._waiting: dict[Any, tuple[_Worker, _Piece[T] | None]] = {}  # by the reference to the result
        self._failed_starts = 0
        self._workers = [self._start() for _ in range(cluster.workers)]

    def results(self) -> Iterator[tuple[T, Any]]:
        import ray

        while True:
            self._hand_out()
            if not any(piece for _, piece in self._waiting.values()) and not self._again and self._is_empty:
                return
            done, _ = ray.wait(list(self._waiting), num_returns=1, timeout=self._patience())
            if not done:
                self._has_said = True
                warn(f"no worker is ready after {PATIENCE:.0f} seconds: {self._lack}")
            for reference in done:
                worker, piece = self._waiting.pop(reference)
                result = self._result(reference, worker, piece)
                if piece is not None and result is not _LOST:
                    yield piece.item, result

    def end(self) -> None:
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)

    _is_empty = False
    _has_said = False  # that no worker is ready

    def _patience(self) -> float | None:
        """Seconds to wait for the next result; None is for ever."""
        return None if self._has_said or any(each.is_ready for each in self._workers) else PATIENCE

    def _start(self) -> _Worker:
        worker = _Worker(self._make(), deque())
        self._waiting[worker.actor.ready.remote()] = worker, None
        return worker

    def _hand_out(self) -> None:
        """Give every worker that is ready something to do."""
        for _ in range(AHEAD):
            for worker in self._workers:
                if worker.is_ready and len(worker.pieces) < AHEAD and (piece := self._next()) is not None:
                    worker.pieces.append(piece)
                    self._waiting[worker.actor.work.remote(piece.item)] = worker, piece

    def _next(self) -> _Piece[T] | None:
        if self._again:
            return self._again.popleft()
        for item in self._items:
            return _Piece(item)
        self._is_empty = True
        return None

    def _result(self, reference: Any, worker: _Worker, piece: _Piece[T] | None) -> Any:
        """The result, or `_LOST` if the worker died and the piece waits for another."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result = ray.get(reference)
        except RayTaskError as error:
            raise cause_of(error, "the start" if piece is None else self._name(piece.item)) from None
        except RayError as error:
            self._replace(worker, piece, error)
            return _LOST
        if piece is None:
            worker.is_ready = True
        else:
            worker.pieces.remove(piece)
        return result

    def _replace(self, worker: _Worker, piece: _Piece[T] | None, error: Exception) -> None:
        """Start a worker in place of one that died, and count that for the piece that it was working on, its oldest."""
        if piece is None:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                raise CodebrushError(f"workers cannot start: {last_line(error)}") from error
        else:
            blamed = worker.pieces[0]
            blamed.tries += 1
            if blamed.tries >= TRIES:
                raise CodebrushError(
                    f"{TRIES} workers died at {self._name(blamed.item)}: {last_line(error)}"
                ) from error
            self._again += worker.pieces
        self._waiting = {reference: each for reference, each in self._waiting.items() if each[0] is not worker}
        warn(f"a worker died and another takes its place: {last_line(error)}")
        self._workers[self._workers.index(worker)] = self._start()


_LOST = object()


def cause_of(error: Any, name: str) -> BaseException:
    """What a worker raised at the work `name`, as if it had been raised in this process."""
    from ray.exceptions import RayError

    cause = error.cause
    if isinstance(cause, RayError):  # Ray's own, where the worker's cannot travel
        cause = CodebrushError(f"a worker failed at {name}: {last_line(cause)}")
    cause.add_note(str(error))  # only tracebacks show it
    return cause


def _with_environment(kind: type) -> type:
    """An actor class that sets the environment before `kind` is made, and has a method to wait for that."""

    class Worker:
        def __init__(self, environment: dict[str, str], *arguments: Any) -> None:
            import os

            os.environ.update(environment)
            self._own = kind(*arguments)

        def ready(self) -> None:
            """Returns once the worker is made."""

        def work(self, item: Any) -> Any:
            return self._own.work(item)

    return Worker


def last_line(error: Exception) -> str:
    """The last line of Ray's message that says something: the first ones name the actor, and what comes last is why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:300]
