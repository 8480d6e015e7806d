"""How fast and how exact a search among 100,000 pictures is, compared with a brute-force search by faiss.

    python benchmarks/search_100k.py [--rows 100000] [--width 256] [--queries 200] [--threads 1] [--json FILE]

The embeddings are distributed like CLIP's: 2,000 clusters (pictures of the same thing), all to one side of the origin.
The queries are pictures from these clusters, and texts, which lie apart from all pictures. Rows are written as
`codebrush index` does, thumbnails included, and a query is a whole `search` with everything it returns (thumbnails too
if its title says so), first on disk and then, as in a server, in memory; faiss compares the bare matrix in memory. The
two take turns. Prints a Markdown table.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch
from alternation import note

from codebrush.search.database import Database, Embedder, create_database, open_database
from codebrush.search.memory_index import QUIET, MemoryIndexes
from codebrush.search.queries import search

K = 10
EMBEDDER = Embedder("benchmark", "0" * 64)
CLUSTERS = 2_000
WRITTEN_AT_ONCE = 5_000
THUMBNAIL_BYTES = 2_000


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_vectors(rows: int, width: int, queries: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Unit vectors of pictures (N, E), and queries (Q, E) of each kind."""
    rng = np.random.default_rng(0)
    centres, side = unit(rng.normal(size=(CLUSTERS, width))), unit(rng.normal(size=(1, width)))

    def near(count: int, towards: float) -> np.ndarray:
        spread = rng.normal(size=(count, width)) * (0.8 / np.sqrt(width))  # of length 0.8 beside the centre's 1
        return unit(towards * side + centres[rng.integers(0, CLUSTERS, count)] + spread)

    return near(rows, 0.7), {"picture": near(queries, 0.7), "text": near(queries, -0.7)}


def build(folder: Path, vectors: np.ndarray) -> tuple[Database, float, float]:
    """The database, the seconds to write its rows and the seconds to build its indices."""
    rng = np.random.default_rng(1)
    database = create_database(folder, EMBEDDER, vectors.shape[1])
    started = time.perf_counter()
    for start in range(0, len(vectors), WRITTEN_AT_ONCE):
        part = vectors[start : start + WRITTEN_AT_ONCE]
        numbers = range(start, start + len(part))
        cells = {
            "path": pa.array([str(number) for number in numbers]),
            "caption": pa.array([f"picture number {number}" for number in numbers]),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1]),
            "thumbnail": pa.array([rng.bytes(THUMBNAIL_BYTES) for _ in numbers], pa.binary()),
        }
        schema = pa.schema([database.table.schema.field(name) for name in cells])
        database.write(pa.table(list(cells.values()), schema=schema))
    written = time.perf_counter()
    database.settle()
    return database, written - started, time.perf_counter() - written


def measure(
    database: Database, flat: faiss.Index, kind: str, queries: np.ndarray, where: str, thumbnails: bool = False
) -> dict[str, float]:
    """Milliseconds a query, p50 and p95, of search and of faiss, and the search's recall of faiss's ten nearest."""
    seconds: dict[str, list[float]] = {"codebrush": [], "faiss": []}
    found = 0
    for number, query in enumerate(np.concatenate([queries[:10], queries])):  # the first ten warm up
        started = time.perf_counter()
        hits = search(database, torch.from_numpy(query), k=K, thumbnails=thumbnails)
        between = time.perf_counter()
        _, nearest = flat.search(query[None], K)
        ended = time.perf_counter()
        if number >= 10:
            seconds["codebrush"].append(between - started)
            seconds["faiss"].append(ended - between)
            found += len({int(hit.path) for hit in hits} & set(nearest[0].tolist()))
    title = f"search among {flat.ntotal:,} x {flat.d}, {kind}{where}"
    recall = round(found / (K * len(queries)), 4)
    times = {"faiss flat": seconds["faiss"], "codebrush": seconds["codebrush"]}
    note(title=title, times=times, flops=0, read={}, load=os.getloadavg()[0], threads=faiss.omp_get_max_threads())
    note(title=title, recall=recall)
    report = {
        f"{name}_p{share}_ms": round(1000 * float(np.percentile(times, share)), 2)
        for name, times in seconds.items()
        for share in (50, 95)
    }
    return {**report, "recall_at_10": recall}


def alone(database: Database, queries: np.ndarray) -> float:
    """Milliseconds a query, p50, where nothing empties the processor's caches between queries, as faiss's scan does."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        search(database, torch.from_numpy(query), k=K, thumbnails=False)
        seconds.append(time.perf_counter() - started)
    return round(1000 * float(np.median(seconds)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of faiss; LanceDB uses all cores")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors, queries = make_vectors(options.rows, options.width, options.queries)
    started = time.perf_counter()
    flat = faiss.IndexFlatIP(options.width)
    flat.add(vectors)
    flat_seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        written, write_seconds, index_seconds = build(Path(folder) / "db", vectors)
        assert written.has_vector_index
        memory = MemoryIndexes()
        on_disk, in_memory = (open_database(Path(folder) / "db", EMBEDDER, memory=each) for each in (None, memory))
        figures = {kind: measure(on_disk, flat, kind, vectors_of, "") for kind, vectors_of in queries.items()}
        began = time.perf_counter()
        search(in_memory, torch.from_numpy(vectors[0]), k=K)
        memory.wait()
        memory_seconds = time.perf_counter() - began - QUIET
        assert memory.nearest(in_memory.place, in_memory.table, in_memory.open_table, vectors[0], K)
        for kind, vectors_of in queries.items():
            figures[f"{kind}, in memory"] = measure(in_memory, flat, kind, vectors_of, ", in memory")
            figures[f"{kind}, in memory"]["alone_p50_ms"] = alone(in_memory, vectors_of)
            words = ", in memory, with thumbnails"
            figures[f"{kind}{words}"] = measure(in_memory, flat, kind, vectors_of, words, thumbnails=True)
    report = {
        "rows": options.rows,
        "width": options.width,
        "write_seconds": round(write_seconds, 2),
        "index_seconds": round(index_seconds, 2),
        "memory_seconds": round(memory_seconds, 2),
        "faiss_seconds": round(flat_seconds, 2),
        "queries": figures,
    }
    print(f"{options.rows:,} embeddings of {options.width}: rows written in {write_seconds:.1f} s, ", end="")
    print(f"indices made in {index_seconds:.1f} s, in memory in {memory_seconds:.1f} s (faiss: {flat_seconds:.2f} s)\n")
    print("| query | codebrush p50 | p95 | faiss flat p50 | p95 | recall@10 |")
    print("|---|---|---|---|---|---|")
    for kind, each in figures.items():
        times = " | ".join(f"{each[f'{name}_p{p}_ms']:.1f} ms" for name in ("codebrush", "faiss") for p in (50, 95))
        print(f"| {kind} | {times} | {each['recall_at_10']:.3f} |")
    print("\nwithout faiss between, in memory: ", end="")
    print(", ".join(f"{kind} {figures[f'{kind}, in memory']['alone_p50_ms']} ms" for kind in queries))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
