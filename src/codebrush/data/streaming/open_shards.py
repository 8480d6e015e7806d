"""Keeps some shards open at a time, fetches and opens the next ones ahead, and removes what is no longer read."""

import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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

    Those that were not asked for the longest are given up first.
    """

    def __init__(self, open: Callable[[int, Path], T], most: int, folder: Path):
        self._open, self.most, self.folder = open, most, folder
        self._pool = ThreadPoolExecutor(AHEAD)
        self._held: OrderedDict[int, Future[T]] = OrderedDict()
        self._lock = threading.Lock()

    def expect(self, shard: int) -> Future[T]:
        """Begin to open a shard that will be asked for, unless it is open."""
        with self._lock:
            found = self._held.get(shard)
            if found is None or (found.done() and found.exception() is not None):
                found = self._held[shard] = self._pool.submit(self._open, shard, self.folder / str(shard))
            self._held.move_to_end(shard)
            while len(self._held) > self.most:
                self._give_up(*self._held.popitem(last=False))
            return found

    def __getitem__(self, shard: int) -> T:
        return self.expect(shard).result()

    def _give_up(self, shard: int, opening: Future[T]) -> None:
        if not opening.cancel():  # rows that are being read stay mapped until they are
            opening.add_done_callback(lambda _: shutil.rmtree(self.folder / str(shard), ignore_errors=True))

    def close(self) -> None:
        """Give all shards up."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            while self._held:
                self._give_up(*self._held.popitem(last=False))
