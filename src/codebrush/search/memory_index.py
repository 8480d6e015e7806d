"""Compares a query with all embeddings of a table in memory, for processes that search the same table again and again.

Each pair of values is a code of 4 bits, of a product quantiser whose tables of distances are looked up in registers
(Jégou et al. 2011; André et al. 2015, "Cache locality is not enough"), by faiss; the best candidates are compared
exactly, with the embeddings in 16 bits. 200,000 embeddings of 512 values take 25 MB of codes and 200 MB for that.
"""

import atexit
import concurrent.futures.thread  # noqa: F401  its end is registered before that of this module, and so comes after it
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from codebrush.search.places import Place, Stamp
from codebrush.search.sample_queries import Asked, sample_queries
from codebrush.search.vector_index import COLUMN, NEAREST, THUMBNAIL, shown_columns

FEWEST_ROWS = 20_000  # below, comparing all embeddings on disk takes as long
MOST_BYTES = 2**31  # of all tables that a process has in memory; on small machines an eighth of its memory
MOST_RESULTS = 128
CANDIDATES = (40, 80, 160)  # times k, or `NEAREST`: compared exactly; the first with which enough is found
LEAST_RECALL = 0.98  # by pictures and by texts; with less, the table is searched on disk
QUERIES, SAMPLE = 32, 1_000  # pictures of the table, and as many texts, by which recall is measured; rows they are of
TRAINED_ON = 10_000  # rows
AT_ONCE = 20_000  # rows, between looks at whether the index is still wanted
QUIET = 3.0  # seconds without a new version of a table, after which it is worth an index
REBUILT = 10.0  # times what the last index of a table took: so long without a new version before it gets another one
SETTLED = 0.1  # seconds after LanceDB's last answer, in which its threads let go of what is Python's
IDLE = 600.0  # seconds: an index that nobody searched makes room, and a table without one is looked at again

Wanted = Callable[[], bool]


class Unwanted(Exception):
    """The index is no longer wanted: the process is about to end, or the table has a newer version."""


class MemoryIndex:
    """The embeddings of one version of a table, and its other columns where they are small.

    Args:
        table: LanceDB's, checked out at that version.
        rows: (N,) uint64, LanceDB's row ids in that version.
        vectors: (N, E) float32 unit vectors; E is even.
        cells: N rows of all columns but embeddings and thumbnails; None if they take too much memory.
        wanted: building ends early with `Unwanted` once this says no.
    """

    def __init__(self, table: Any, rows: np.ndarray, vectors: np.ndarray, cells: pa.Table | None, wanted: Wanted):
        import faiss

        self.table, self.schema = table, table.schema
        self.rows, self.vectors, self.cells = rows, vectors, cells
        width = vectors.shape[1]
        self.codes: Any = faiss.IndexPQFastScan(width, width // 2, 4, faiss.METRIC_INNER_PRODUCT)
        _check(wanted)
        with _threads(torch.get_num_threads()):
            self.codes.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // TRAINED_ON)]))
            for start in range(0, len(vectors), AT_ONCE):
                _check(wanted)
                self.codes.add(vectors[start : start + AT_ONCE])
        self.candidates = self._enough(wanted)

    @property
    def bytes(self) -> int:
        """The memory that it takes, but for a few tables."""
        return bytes_of(*self.vectors.shape) + (0 if self.cells is None else self.cells.nbytes)

    def nearest(self, vector: np.ndarray, k: int, thumbnails: bool = True) -> list[dict[str, Any]] | None:
        """The `k` rows whose embeddings have the highest cosines with a unit vector (E,) float32, best first, without
        the embedding, with the thumbnail if asked for, and with LanceDB's `_distance`, 1 less the cosine. None where
        too little would be found.
        """
        if self.candidates is None:
            return None
        places = self._places(vector, k, self.candidates)
        distances = 1 - self.vectors[places] @ vector / np.linalg.norm(vector)
        cells = zip(self._cells(places, thumbnails), distances.tolist(), strict=True)
        return [row | {"_distance": distance} for row, distance in cells]

    def _cells(self, places: np.ndarray, thumbnails: bool) -> list[dict[str, Any]]:
        """The rows at these places, in their order."""
        if self.cells is not None and not thumbnails:
            return self.cells.take(places).to_pylist()
        ids = self.rows[places].tolist()
        found = self.table.take_row_ids(ids).select(shown_columns(self.schema, thumbnails)).with_row_id().to_list()
        known = {row.pop("_rowid"): row for row in found}
        return [known[number] for number in ids]

    def _places(self, vector: np.ndarray, k: int, candidates: int) -> np.ndarray:
        with _threads(1):
            found = self.codes.search(vector[None], min(len(self.rows), max(k, NEAREST) * candidates))[1][0]
        found = found[found >= 0]
        cosines = self.vectors[found] @ vector
        return found[np.argsort(-cosines)[:k]]

    def _enough(self, wanted: Wanted) -> int | None:
        """The least number of candidates that finds `LEAST_RECALL` of the nearest pictures of pictures and of texts."""
        draw = np.random.default_rng(0)
        sample = self.vectors[draw.choice(len(self.vectors), min(SAMPLE, len(self.vectors)), replace=False)]
        queries = sample_queries(torch.from_numpy(sample), QUERIES, draw)  # (2 Q, E)
        asked = Asked.of(queries, self._parts(wanted))
        for candidates in CANDIDATES:
            _check(wanted)
            if min(asked.recall(partial(self._cosines, candidates=candidates))) >= LEAST_RECALL:
                return candidates
        return None

    def _parts(self, wanted: Wanted) -> Iterator[Tensor]:
        for start in range(0, len(self.vectors), AT_ONCE):
            _check(wanted)
            yield torch.from_numpy(self.vectors[start : start + AT_ONCE])

    def _cosines(self, query: Tensor, candidates: int) -> list[float]:
        vector = query.numpy()
        return (self.vectors[self._places(vector, NEAREST, candidates)] @ vector).tolist()


def bytes_of(count: int, width: int) -> int:
    """The memory that so many embeddings take: 32 bits a value, 4 bits for two, and the row's id."""
    return count * (4 * width + width // 4 + 8)


def most_bytes() -> int:
    """The memory that the indexes of a process may take."""
    if not hasattr(os, "sysconf"):
        return MOST_BYTES
    return min(MOST_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)


@dataclass(eq=False)
class _Known:
    """What a process has of a table, at the newest version that it was asked of: an index; or None, while it is being
    made, or where the table is not to be searched in memory.
    """

    version: int
    own: Stamp | None  # of that version
    stamp: Stamp | None = None  # of the table, when that was its newest version
    index: MemoryIndex | None = None
    looked_at: float = field(default_factory=time.monotonic)
    searched: float = field(default_factory=time.monotonic)
    took: float = 0.0  # seconds, to make the last index of the table


class MemoryIndexes:
    """The indexes in memory of all tables that a process searches, made in the background. Keep one for all of them."""

    def __init__(self) -> None:
        self._known = dict[str, _Known]()
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._stop, self._threads = threading.Event(), list[threading.Thread]()
        _all.add(self)

    def nearest(
        self, place: Place, table: Any, again: Callable[[], Any], vector: np.ndarray, k: int, thumbnails: bool = True
    ) -> list[dict[str, Any]] | None:
        """The `k` rows of the table at a place that are nearest to a vector; see `MemoryIndex.nearest`.

        `again` opens the table once more. None if the rows are not to be had: an index is then made, unless the table
        is too small or too large, has an odd E, `k` is over `MOST_RESULTS`, or faiss is not installed.
        """
        if k > MOST_RESULTS or not 0 < float(np.linalg.norm(vector)) < np.inf:
            return None
        name, now, stamp = str(place), time.monotonic(), place.stamp()
        known = self._known.get(name)
        if known is not None and stamp is not None and known.stamp == stamp:
            version, own = known.version, known.own
        else:
            version = table.version
            own = place.stamp_of(version)
        with self._lock:
            known = self._known.get(name)
            if known is not None and known.version > version and place.stamp_of(known.version) == known.own:
                return None  # the version is an older one by now
            is_known = known is not None and (known.version, known.own) == (version, own)
            if known is None or not is_known or (known.index is None and now - known.looked_at > IDLE):
                took = 0.0 if known is None else known.took
                self._known[name] = known = _Known(version, own, took=took)
                self._make(name, again, known)
            known.stamp, known.searched = stamp, now
            index = known.index
        try:
            return None if index is None else index.nearest(vector, k, thumbnails)
        except Exception:  # its files are gone: the table was made anew, or its old versions were removed meanwhile
            with self._lock:
                if self._known.get(name) is known:
                    del self._known[name]
            return None

    def wait(self) -> None:
        """Return once no index is being made."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Stop making indexes; those that are there still answer."""
        self._stop.set()
        self.wait()

    def _make(self, name: str, again: Callable[[], Any], known: _Known) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._work, args=(name, again, known), name="codebrush-index", daemon=True)
        with suppress(RuntimeError):  # there is no memory for another thread: the table is looked at again after `IDLE`
            thread.start()
            self._threads.append(thread)

    def _work(self, name: str, again: Callable[[], Any], known: _Known) -> None:
        def wanted() -> bool:
            return not self._stop.is_set() and self._known.get(name) is known

        self._stop.wait(max(QUIET, REBUILT * known.took))
        with self._making:
            began = time.monotonic()
            try:
                index = read_index(again, known.version, wanted, self._room, with_cells=known.own is not None)
            except Exception:  # whatever is wrong is told by the search on disk, which goes on
                return
            with self._lock:
                known.index, known.took = index, time.monotonic() - began

    def _room(self) -> int:
        """How many bytes a further index may take, once those that nobody searches any more are given up."""
        with self._lock:
            now = time.monotonic()
            for known in self._known.values():
                if known.index is not None and now - known.searched > IDLE:
                    known.index, known.looked_at = None, now
            return most_bytes() - sum(known.index.bytes for known in self._known.values() if known.index is not None)


def read_index(
    again: Callable[[], Any],
    version: int,
    wanted: Wanted,
    room: Callable[[], int] = most_bytes,
    with_cells: bool = True,
) -> MemoryIndex | None:
    """The index of all embeddings of the table that `again` opens, at this `version`.

    None if it should have none, has a newer version, or would take more bytes than `room` says. Without the other
    columns if they would, or unless `with_cells`: where nothing tells a table that was made again, only its rows do,
    which are then gone.

    Raises:
        Unwanted: if `wanted` says no meanwhile.
        ImportError: if faiss is not installed.
    """
    import faiss  # noqa: F401  before much is read

    _check(wanted)
    table = again()
    if table.version != version:
        return None
    table.checkout(version)
    width, count = table.schema.field(COLUMN).type.list_size, table.count_rows()
    left = room() - bytes_of(count, width)
    if width % 2 or count < FEWEST_ROWS or left < 0:
        return None
    rows, vectors, filled = np.empty(count, np.uint64), np.empty((count, width), np.float32), 0
    cells = list[pa.Table]()
    for part in _parts_of(table, count, wanted):
        flat = part[COLUMN].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        some = np.asarray(flat, np.float32).reshape(-1, width)
        norms = np.linalg.norm(some, axis=1)
        kept = np.isfinite(norms) & (norms > 1e-12)  # LanceDB finds no others either
        ended = filled + int(kept.sum())
        vectors[filled:ended] = some[kept] / norms[kept, None]
        rows[filled:ended] = part["_rowid"].to_numpy()[kept]
        filled = ended
        if with_cells and left >= 0:
            cells.append(part.drop_columns([COLUMN, "_rowid"]).filter(kept))
            left -= cells[-1].nbytes
        if left < 0:
            cells.clear()
    if filled < FEWEST_ROWS or len(np.unique(rows[:filled])) != filled:
        return None
    small = pa.concat_tables(cells).combine_chunks() if cells else None
    return MemoryIndex(table, rows[:filled], vectors[:filled], small, wanted)


def _parts_of(table: Any, count: int, wanted: Wanted) -> Iterator[pa.Table]:
    """The rows that have an embedding, with their ids and without thumbnails."""
    columns = [name for name in table.schema.names if name != THUMBNAIL]
    for start in range(0, count, AT_ONCE):
        _check(wanted)  # between whole queries: LanceDB's threads abort a process that ends before they are done
        query = table.search().select(columns).with_row_id(True).limit(AT_ONCE).offset(start)
        part = query.to_arrow().combine_chunks()
        yield part.filter(part[COLUMN].is_valid())


def _check(wanted: Wanted) -> None:
    if not wanted():
        raise Unwanted


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """In this block faiss has so many threads, in the thread that runs it alone."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


_all: WeakSet[MemoryIndexes] = WeakSet()


def _close_all() -> None:
    """Ends what is being made, before LanceDB can no longer answer.

    Queries that are made while Python ends may wait for ever, and LanceDB's threads abort the process if they give back
    Python objects then.
    """
    making = any(thread.is_alive() for each in list(_all) for thread in each._threads)
    for each in list(_all):
        each.close()
    if making:
        time.sleep(SETTLED)


# `atexit` comes too late: the executors that LanceDB needs are closed before it
getattr(threading, "_register_atexit", atexit.register)(_close_all)
