"""Measures, on the table itself, how much of what a full comparison finds its vector index finds too."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.search.database import Database
from codebrush.search.queries import search

QUERIES = 50  # half of them pictures of the table, half random vectors, which lie apart from pictures as texts do
NEAREST = 10
SAME = 1e-5  # cosines that differ by less are equal: of pictures that are as near, either one is right


@torch.no_grad()
def measure_recall(database: Database) -> float | None:
    """The share of the `NEAREST` pictures of each query, as all embeddings compared one by one give them, that a search
    finds (recall@10). None if the table has fewer pictures.
    """
    queries, best = _queries(database), None
    for part in _embeddings(database):
        cosines = queries @ part.T  # (Q, B)
        best = cosines if best is None else torch.cat([best, cosines], dim=1)
        best = best.topk(min(NEAREST, best.shape[1])).values  # (Q, 10)
    if best is None or best.shape[1] < NEAREST:
        return None
    found = 0
    for query, least in zip(queries, best[:, -1].tolist(), strict=True):
        found += sum(hit.score >= least - SAME for hit in search(database, query, k=NEAREST))
    return found / (NEAREST * len(queries))


def _queries(database: Database) -> Tensor:
    """Unit vectors (Q, E), the same for the same table."""
    draw = np.random.default_rng(0)
    with database.guarded():
        rows = draw.choice(database.table.count_rows(), QUERIES // 2).tolist()
        own = database.table.take_offsets(rows).select(["embedding"]).to_arrow()["embedding"].drop_null()
    pictures = torch.tensor(own.to_pylist()).reshape(len(own), database.embed_dim)
    random = torch.from_numpy(draw.normal(size=(QUERIES - len(own), database.embed_dim))).float()
    return F.normalize(torch.cat([pictures, random]), dim=-1)


def _embeddings(database: Database) -> Iterator[Tensor]:
    for part in database.rows(["embedding"], "embedding IS NOT NULL"):
        flat = np.array(part["embedding"].flatten().to_numpy(zero_copy_only=False))
        if len(flat):
            yield F.normalize(torch.from_numpy(flat).reshape(len(part), -1), dim=-1)  # (B, E)
