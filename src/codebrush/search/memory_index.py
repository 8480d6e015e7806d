"""Compares a query with all embeddings of a table in memory, for processes that search the same table again and again.

Each pair of values is a code of 4 bits, of a product quantiser whose tables of distances are looked up in registers
(Jégou et al. 2011; André et al. 2015, "Cache locality is not enough"), by faiss; the best candidates are compared
exactly, with the embeddings in 16 bits. 200,000 embeddings of 512 values take 25 MB of codes and 200 MB for that.
"""

import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codebrush.search.sample_queries import sample_queries
from codebrush.search.vector_index import COLUMN, NEAREST

FEWEST_ROWS = 20_000  # below, comparing all embeddings on disk takes as long
MOST_BYTES = 2**30  # of all tables in memory
MOST_RESULTS = 100
CANDIDATES = (40, 80, 160)  # times k, or `NEAREST`: compared exactly; the first with which enough is found
LEAST_RECALL = 0.98  # by pictures and by texts; with less, the table is searched on disk
QUERIES, SAMPLE = 32, 1_000  # pictures of the table, and as many texts, by which recall is measured; rows they are of
TRAINED_ON = 10_000  # rows
ADDED_AT_ONCE = 20_000  # rows, between looks at whether the process is about to end
QUIET = 3.0  # seconds without a new version of a table, after which it is worth an index


class MemoryIndex:
    """The embeddings of one version of a table.

    Args:
        table: LanceDB's, checked out at that version.
        rows: (N,) uint64, LanceDB's row ids in that version.
        vectors: (N, E) float16 unit vectors; E is even.
        stop: building ends early with `Stopped` once this is set.
    """

    def __init__(self, table: Any, rows: np.ndarray, vectors: np.ndarray, stop: threading.Event):
        import faiss

        self.table, self.columns = table, [name for name in table.schema.names if name != COLUMN]
        self.rows, self.vectors = rows, vectors
        width = vectors.shape[1]
        self.codes: Any = faiss.IndexPQFastScan(width, width // 2, 4, faiss.METRIC_INNER_PRODUCT)
        _check(stop)
        self.codes.train(vectors[:: max(1, len(vectors) // TRAINED_ON)].astype(np.float32))
        for start in range(0, len(vectors), ADDED_AT_ONCE):
            _check(stop)
            self.codes.add(vectors[start : start + ADDED_AT_ONCE].astype(np.float32))
        self.candidates = self._enough(stop)

    @property
    def bytes(self) -> int:
        """The memory that it takes, but for a few tables."""
        return self.vectors.nbytes + self.vectors.size // 4 + self.rows.nbytes

    def nearest(self, vector: np.ndarray, k: int) -> list[dict[str, Any]] | None:
        """The `k` rows whose embeddings have the highest cosines with a unit vector (E,) float32, in any order, without
        the embedding and with LanceDB's `_distance`, 1 less the cosine. None where too little would be found.
        """
        if self.candidates is None:
            return None
        ids = self.rows[self._places(vector, k, self.candidates)].tolist()
        found = self.table.take_row_ids(ids).select([*self.columns, COLUMN]).to_arrow()
        flat = found[COLUMN].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        embeddings = np.asarray(flat, np.float32).reshape(len(found), -1)
        cosines = embeddings @ vector / np.linalg.norm(embeddings, axis=1) / np.linalg.norm(vector)
        cells = found.drop_columns([COLUMN]).to_pylist()
        return [row | {"_distance": 1 - cosine} for row, cosine in zip(cells, cosines.tolist(), strict=True)]

    def _places(self, vector: np.ndarray, k: int, candidates: int) -> np.ndarray:
        found = self.codes.search(vector[None], min(len(self.rows), max(k, NEAREST) * candidates))[1][0]
        found = found[found >= 0]
        cosines = self.vectors[found].astype(np.float32) @ vector
        return found[np.argsort(-cosines)[:k]]

    def _enough(self, stop: threading.Event) -> int | None:
        """The least number of candidates that finds `LEAST_RECALL` of the nearest pictures of pictures and of texts."""
        draw = np.random.default_rng(0)
        sample = self.vectors[draw.choice(len(self.vectors), min(SAMPLE, len(self.vectors)), replace=False)]
        queries = sample_queries(torch.from_numpy(sample.astype(np.float32)), QUERIES, draw).numpy()
        best = np.zeros((len(queries), 0), np.float32)
        for start in range(0, len(self.vectors), ADDED_AT_ONCE):
            _check(stop)
            cosines = queries @ self.vectors[start : start + ADDED_AT_ONCE].astype(np.float32).T
            best = np.sort(np.concatenate([best, cosines], axis=1), axis=1)[:, -NEAREST:]
        for candidates in CANDIDATES:
            _check(stop)
            places = [self._places(query, NEAREST, candidates) for query in queries]
            found = [
                (self.vectors[each].astype(np.float32) @ query >= least - 1e-5).mean()
                for each, query, least in zip(places, queries, best[:, 0], strict=True)
            ]
            if min(np.mean(found[: len(found) // 2]), np.mean(found[len(found) // 2 :])) >= LEAST_RECALL:
                return candidates
        return None


class Stopped(Exception):
    """The process is about to end."""


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped


@dataclass
class _Known:
    """What a process has of a table: an index, or that one is being made, of the newest version that it was asked of;
    neither where the table is not to be searched in memory."""

    version: int
    index: MemoryIndex | None = None


class MemoryIndexes:
    """The indexes in memory of all tables that a process searches, made in the background.

    Those not searched for longest are given up where they would take more than `MOST_BYTES`.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._stop, self._threads = threading.Event(), list[threading.Thread]()
        atexit.register(self.close)

    def nearest(
        self, name: str, table: Any, again: Callable[[], Any], vector: np.ndarray, k: int
    ) -> list[dict[str, Any]] | None:
        """The `k` rows nearest to a vector; see `MemoryIndex.nearest`.

        `name` says which table it is, and `again` opens it once more. None if the rows are not to be had: an index is
        then made, unless the table is too small or too large, has an odd E, `k` is over `MOST_RESULTS`, or faiss is
        not installed.
        """
        if k > MOST_RESULTS:
            return None
        version = table.version
        with self._lock:
            known = self._known.get(name)
            if known is None or known.version != version:
                self._known[name] = known = _Known(version)
                self._make(name, again, version)
            self._known.move_to_end(name)
            index = known.index
        return None if index is None else index.nearest(vector, k)

    def wait(self) -> None:
        """Return once no index is being made."""
        for thread in list(self._threads):
            thread.join()

    def close(self) -> None:
        """Stop making indexes; those that are there still answer."""
        self._stop.set()
        self.wait()

    def _make(self, name: str, again: Callable[[], Any], version: int) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._work, args=(name, again, version), name="codebrush-index", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, name: str, again: Callable[[], Any], version: int) -> None:
        self._stop.wait(QUIET)
        with self._making:
            try:
                index = read_index(again(), version, self._stop)
            except Exception:  # whatever is wrong is told by the search on disk, which goes on
                return
        with self._lock:
            known = self._known.get(name)
            if known is None or known.version != version or index is None:
                return
            known.index = index
            self._drop_all_but(name)

    def _drop_all_but(self, name: str) -> None:
        def used() -> int:
            return sum(known.index.bytes for known in self._known.values() if known.index is not None)

        for other in list(self._known):
            if used() > MOST_BYTES and other != name:
                del self._known[other]


def read_index(table: Any, version: int, stop: threading.Event) -> MemoryIndex | None:
    """The index of all embeddings of a table, which is checked out at this `version`; None if it should have none, or
    has a newer version.

    Raises:
        Stopped: if `stop` is set meanwhile.
        ImportError: if faiss is not installed.
    """
    import faiss  # noqa: F401  before much is read

    if table.version != version:
        return None
    table.checkout(version)
    width, count = table.schema.field(COLUMN).type.list_size, table.count_rows(f"{COLUMN} IS NOT NULL")
    if width % 2 or count < FEWEST_ROWS or count * width * 2 > MOST_BYTES:
        return None
    rows, vectors = np.empty(count, np.uint64), np.empty((count, width), np.float16)
    filled = 0
    query = table.search().where(f"{COLUMN} IS NOT NULL").select([COLUMN]).with_row_id(True)
    _check(stop)
    for part in query.to_batches():  # to its end: LanceDB's threads abort a process that ends before they are done
        some = np.array(part[COLUMN].flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
        norms = np.linalg.norm(some, axis=1, keepdims=True)
        vectors[filled : filled + len(some)] = some / np.maximum(norms, 1e-12)
        rows[filled : filled + len(some)] = part["_rowid"].to_numpy()
        filled += len(some)
    return MemoryIndex(table, rows, vectors, stop)
