"""Measures, on the table itself, how much of what a full comparison finds its vector index finds too; and chooses how
much of a large index queries search, so that they find as much as is asked for.

Texts lie apart from pictures in CLIP's space. No CLIP is at hand here, so texts are made of the table's pictures: on
the other side of what all pictures have in common, with a cosine of 0.3 to a picture beside that, and otherwise spread
as pictures are. Of the built-in pack's true texts the nearest pictures lie in as many partitions (docs/log.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.search.database import Database
from codebrush.search.queries import search
from codebrush.search.vector_index import ALL, MOST_REFINED, NEAREST, Settings, nearest, settings_of, store_settings

TARGET = 0.97  # so that other queries than those measured find 0.95
QUERIES = 64  # pictures of the table, and as many texts
SAMPLE = 1_000  # pictures of which texts are made
TEXT_COSINE, APART = 0.3, 0.7
SAME = 1e-5  # cosines that differ by less are equal: of pictures that are as near, either one is right
FEWEST_PROBES = 8


class Recall(NamedTuple):
    """The shares of the ten nearest pictures that searches by pictures and by texts find (recall@10)."""

    pictures: float
    texts: float


@dataclass(frozen=True)
class _Asked:
    """Unit vectors (2 Q, E), first pictures, then texts, and the cosine of each with its tenth nearest picture."""

    queries: Tensor
    least: list[float]


def measure_recall(database: Database) -> Recall | None:
    """What searches of a database find of what all embeddings compared one by one give. None if it has fewer than ten
    pictures.
    """
    asked = _ask(database)
    return asked and _recall(asked, lambda query: [hit.score for hit in search(database, query, k=NEAREST)])


def tune(database: Database) -> Settings | None:
    """Measure the recall of the vector index, and store it beside the index.

    Of an index with partitions to choose from, first find the fewest of them, and the fewest rows compared exactly,
    with which both recalls reach `TARGET`. None if the database has no index, or fewer than ten pictures.
    """
    settings = settings_of(database.table.schema)
    if settings is None or not database.has_vector_index or (asked := _ask(database)) is None:
        return None

    def measured(tried: Settings) -> Settings:
        pictures, texts = _recall(asked, lambda query: _cosines(database, query, tried))
        return replace(tried, measured=rows, recall_pictures=round(pictures, 4), recall_texts=round(texts, 4))

    rows = database.count()
    found = _fewest(measured, settings, rows) if settings.partition_rows else measured(settings)
    with database.guarded(), database.locked():
        store_settings(database.table, found)
    return found


def _fewest(measured: Callable[[Settings], Settings], settings: Settings, rows: int) -> Settings:
    """The settings that search least and reach the target. Half of what may be missed is left to the partitions; in
    the worst case all are searched, and all rows compared exactly.
    """

    def reaches(tried: Settings, target: float) -> bool:
        return min(tried.recall_pictures or 0, tried.recall_texts or 0) >= target

    tried = settings
    for probes in [*_growing(FEWEST_PROBES, rows // settings.partition_rows, 2**0.5), ALL]:
        tried = measured(replace(settings, probes=probes, refine=MOST_REFINED))
        if reaches(tried, (1 + TARGET) / 2):
            break
    for refine in [*_growing(2, rows // NEAREST, 2), rows // NEAREST]:
        tried = measured(replace(tried, refine=refine))
        if reaches(tried, TARGET):
            break
    return tried


def _growing(first: int, last: int, factor: float) -> Iterator[int]:
    """Yield whole numbers below `last` that grow by about `factor`."""
    number = float(first)
    while number < last:
        yield round(number)
        number *= factor


def _recall(asked: _Asked, find: Callable[[Tensor], Sequence[float]]) -> Recall:
    """The recalls of a search that gives the cosines of the pictures that it finds."""
    found = [
        sum(cosine >= least - SAME for cosine in find(query)) / NEAREST
        for query, least in zip(asked.queries, asked.least, strict=True)
    ]
    half = len(found) // 2
    return Recall(sum(found[:half]) / half, sum(found[half:]) / half)


def _cosines(database: Database, query: Tensor, settings: Settings) -> list[float]:
    with database.guarded():
        rows = nearest(database.table, query.numpy(), NEAREST, None, settings).select(["_distance"]).to_arrow()
    return [1 - distance for distance in rows["_distance"].to_pylist()]


@torch.no_grad()
def _ask(database: Database) -> _Asked | None:
    """The queries, the same for the same table; None if it has fewer than ten pictures."""
    if database.count("embedding IS NOT NULL") < NEAREST:
        return None
    queries, best = _queries(database), torch.empty(0)
    for part in _embeddings(database):
        cosines = queries @ part.T  # (2 Q, B)
        best = torch.cat([best, cosines], dim=1) if len(best) else cosines
        best = best.topk(min(NEAREST, best.shape[1])).values  # (2 Q, 10)
    return _Asked(queries, best[:, -1].tolist())


def _queries(database: Database) -> Tensor:
    """Unit vectors (2 Q, E): pictures of the table, and texts made of them."""
    draw = np.random.default_rng(0)
    with database.guarded():
        count = database.table.count_rows()
        rows = draw.choice(count, min(SAMPLE, count), replace=False).tolist()
        own = database.table.take_offsets(rows).select(["embedding"]).to_arrow()["embedding"].drop_null()
    sample = F.normalize(torch.tensor(own.to_pylist()).reshape(len(own), database.embed_dim), dim=-1)  # (S, E)
    pictures, common = sample[:QUERIES], sample.mean(0)
    mix = torch.from_numpy(draw.normal(size=(len(pictures), len(sample)))).float()  # (Q, S)
    spread = F.normalize(mix @ (sample - common), dim=-1)  # (Q, E), distributed as pictures are
    texts = TEXT_COSINE * F.normalize(pictures - common, dim=-1) + (1 - TEXT_COSINE**2) ** 0.5 * spread
    return torch.cat([pictures, F.normalize(texts - APART * F.normalize(common, dim=0), dim=-1)])


def _embeddings(database: Database) -> Iterator[Tensor]:
    for part in database.rows(["embedding"], "embedding IS NOT NULL"):
        flat = np.array(part["embedding"].flatten().to_numpy(zero_copy_only=False))
        if len(flat):
            yield F.normalize(torch.from_numpy(flat).reshape(len(part), -1), dim=-1)  # (B, E)
