"""Measures, on the table itself, how much of what a full comparison finds its vector index finds too; and chooses how
much of a large index queries search, so that they find as much as is asked for.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.progress import Progress
from codebrush.search.database import Database
from codebrush.search.queries import search
from codebrush.search.sample_queries import Asked, Recall, sample_queries
from codebrush.search.vector_index import (
    ALL,
    MOST_REFINED,
    NEAREST,
    IndexSettings,
    nearest,
    settings_of,
    store_settings,
)

TARGET = 0.97  # so that other queries than those measured find 0.95
QUERIES = 64  # pictures of the table, and as many texts
SAMPLE = 1_000  # pictures of which texts are made
FEWEST_PROBES = 8
REFINED = (2, 4, 8, 16, 32, MOST_REFINED)  # times k: rows compared exactly that are tried


def measure_recall(database: Database) -> Recall | None:
    """What searches of a database find of what all embeddings compared one by one give. None if it has fewer than ten
    pictures.
    """
    asked = _ask(database)
    return asked and asked.recall(
        lambda query: [hit.score for hit in search(database, query, k=NEAREST, thumbnails=False)]
    )


def tune(database: Database, progress: Progress | None = None) -> IndexSettings | None:
    """Measure the recall of the vector index, and store it beside the index.

    Of an index with partitions to choose from, first find the fewest of them, and the fewest rows compared exactly,
    with which both recalls reach `TARGET`; if none do, all partitions are searched and `MOST_REFINED` times k rows
    compared. `progress` counts measurements. None, and nothing is stored, if the database has no index or fewer than
    ten pictures, or if another process made or measured the index meanwhile.
    """
    settings = settings_of(database.table.schema)
    if settings is None or not database.has_vector_index or (asked := _ask(database)) is None:
        return None
    rows, done = database.count(), 0
    probes = [*_growing(FEWEST_PROBES, rows / settings.partition_rows), ALL] if settings.partition_rows else []
    total = 1 + sum((len(options) - 1).bit_length() for options in (probes, REFINED)) if probes else 1

    @cache
    def measured(tried: IndexSettings) -> IndexSettings:
        nonlocal done
        pictures, texts = asked.recall(lambda query: _cosines(database, query, tried))
        done += 1
        if progress is not None:
            progress(done, total)
        recalls = {"recall_pictures": round(pictures, 4), "recall_texts": round(texts, 4)}
        return replace(tried, measured_rows=rows, **recalls)

    found = measured(_fewest(measured, settings, probes) if probes else settings)
    with database.guarded(), database.locked():
        if settings_of(database.table.schema) != settings:
            return None
        store_settings(database.table, found)
    return found


def described(index: IndexSettings) -> str:
    """What to say of a vector index that was measured."""
    count = round(index.measured_rows / index.partition_rows) if index.partition_rows else 0
    searched = f"{index.probes:,} of some {count:,} partitions" if index.probes < count else "all of it"
    said = (
        f"the vector index ({index.kind}, {searched} searched) was measured: of the ten nearest pictures, searches by "
        f"pictures find {index.recall_pictures:.1%} and searches by texts {index.recall_texts:.1%}"
    )
    if not index.partition_rows or _reaches(index, TARGET):
        return said
    most = f"even with {index.refine} times as many rows compared exactly as are found, the most that is tried"
    return f"{said}; {TARGET:.0%} was aimed at, and not reached {most}"


def _reaches(settings: IndexSettings, target: float) -> bool:
    """Whether the recalls that were measured, by pictures and by texts, both reach a target."""
    return min(settings.recall_pictures or 0, settings.recall_texts or 0) >= target


def _fewest(
    measured: Callable[[IndexSettings], IndexSettings], settings: IndexSettings, probes: Sequence[int]
) -> IndexSettings:
    """The settings that search least and reach the target, found by bisection: more partitions, and more rows compared
    exactly, find no less. Half of what may be missed is left to the partitions. The last of either is never tried:
    it is what remains if no other is enough.
    """

    def first(options: Sequence[IndexSettings], target: float) -> IndexSettings:
        place = bisect_left(options, True, hi=len(options) - 1, key=lambda tried: _reaches(measured(tried), target))
        return options[place]

    tried = first([replace(settings, probes=count, refine=MOST_REFINED) for count in probes], (1 + TARGET) / 2)
    return first([replace(tried, refine=refine) for refine in REFINED], TARGET)


def _growing(first: int, last: float) -> Iterator[int]:
    """Yield whole numbers below `last` that grow by about the square root of two."""
    number = float(first)
    while number < last:
        yield round(number)
        number *= 2**0.5


def _cosines(database: Database, query: Tensor, settings: IndexSettings) -> list[float]:
    with database.guarded():
        rows = nearest(database.table, query.numpy(), NEAREST, None, settings).select(["_distance"]).to_arrow()
    return [1 - distance for distance in rows["_distance"].to_pylist()]


@torch.no_grad()
def _ask(database: Database) -> Asked | None:
    """The queries, the same for the same table; None if it has fewer than ten pictures."""
    if database.count("embedding IS NOT NULL") < NEAREST:
        return None
    return Asked.of(_queries(database), _embeddings(database))


def _queries(database: Database) -> Tensor:
    """Unit vectors (2 Q, E): pictures of the table, and texts made of them."""
    draw = np.random.default_rng(0)
    with database.guarded():
        count = database.table.count_rows()
        rows = draw.choice(count, min(SAMPLE, count), replace=False).tolist()
        own = database.table.take_offsets(rows).select(["embedding"]).to_arrow()["embedding"].drop_null()
    sample = F.normalize(torch.tensor(own.to_pylist()).reshape(len(own), database.embed_dim), dim=-1)  # (S, E)
    return sample_queries(sample, QUERIES, draw)


def _embeddings(database: Database) -> Iterator[Tensor]:
    for part in database.rows(["embedding"], "embedding IS NOT NULL"):
        flat = np.array(part["embedding"].flatten().to_numpy(zero_copy_only=False))
        if len(flat):
            yield F.normalize(torch.from_numpy(flat).reshape(len(part), -1), dim=-1)  # (B, E)
