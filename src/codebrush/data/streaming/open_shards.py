"""Keeps some shards open at a time, fetches and opens the next ones ahead, and removes what is no longer read."""

import shutil
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Generic, TypeVar

from filelock import FileLock, Timeout

from codebrush.files import write_errors

T = TypeVar("T")
AHEAD = 2  # shards that are fetched and opened at once


class Spool:
    """A folder of this process within `cache`, removed at its end; those of processes that were killed go with it."""

    def __init__(self, cache: Path):
        for lock in cache.glob("stream-*.lock"):
            with suppress(Timeout, OSError), FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        self.folder = cache / f"stream-{token_hex(4)}"
        lock = FileLock(f"{self.folder}.lock")
        with write_errors(f"copies of shards in {cache}"):
            cache.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            self.folder.mkdir()
        self._end = weakref.finalize(self, _remove, self.folder, lock)

    def close(self) -> None:
        """Remove the folder."""
        self._end()


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


class OpenShards(Generic[T]):
    """The shards that are read now, by number, `most` of them at once, each opened by `open` into a folder of its own.

    Those that were not asked for the longest are given up first, but none that a thread waits for or a batch needs:
    of these there may be more than `most`.
    """

    def __init__(self, open: Callable[[int, Path], T], most: int, folder: Path):
        self._open, self.most, self.folder = open, most, folder
        self._pool = ThreadPoolExecutor(AHEAD)
        self._held: OrderedDict[int, tuple[Future[T], Path]] = OrderedDict()
        self._needed: set[int] | None = None  # by the batch that is read; None: rows are not read in batches
        self._awaited: Counter[int] = Counter()
        self._openings = count()
        self._lock = threading.Lock()

    def begin_batch(self, shards: Sequence[int]) -> None:
        """Begin to open those of `shards` that are not open. They, and others that are asked for, are kept until the
        next batch begins."""
        with self._lock:
            self._needed = set(shards)
            for shard in shards:
                self._expect(shard)

    def __getitem__(self, shard: int) -> T:
        with self._lock:
            if self._needed is not None:
                self._needed.add(shard)
            opening = self._expect(shard)
            self._awaited[shard] += 1
        try:
            return opening.result()
        finally:
            with self._lock:
                self._awaited[shard] -= 1

    def _expect(self, shard: int) -> Future[T]:
        if shard in self._held and _has_failed(self._held[shard][0]):
            self._give_up(shard)
        if shard not in self._held:
            # of its own, because an earlier opening may still be at work
            folder = self.folder / f"{shard}-{next(self._openings)}"
            self._held[shard] = self._pool.submit(self._open, shard, folder), folder
        self._held.move_to_end(shard)
        if (over := len(self._held) - self.most) > 0:
            for other in [each for each in self._held if each != shard and not self._is_used(each)][:over]:
                self._give_up(other)
        return self._held[shard][0]

    def _is_used(self, shard: int) -> bool:
        return self._awaited[shard] > 0 or (self._needed is not None and shard in self._needed)

    def _give_up(self, shard: int) -> None:
        opening, folder = self._held.pop(shard)
        if not opening.cancel():  # rows that are being read stay mapped until they are
            opening.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))

    def close(self) -> None:
        """Give all shards up."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            for shard in [*self._held]:
                self._give_up(shard)


def _has_failed(opening: Future[T]) -> bool:
    return opening.cancelled() or (opening.done() and opening.exception() is not None)
