"""The vector index of a large database finds what brute force finds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codebrush.pack.pack import open_clip
from codebrush.search.database import create_database, open_database
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from codebrush.search.queries import search
from codebrush.search.recall import measure_recall
from codebrush.search.vector_index import FLAT, PLANS, Plan
from search_helpers import EMBEDDER, database_of, unit, write_scenes

ANN_ROWS = PLANS[1].rows
WIDTH = 64
QUERIES = 20


def _clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Distributed like CLIP embeddings: around many centres, all on one side of the origin."""
    centres = np.random.default_rng(7).normal(size=(500, WIDTH))
    noise = rng.normal(size=(count, WIDTH)) * 0.3
    return unit(centres[rng.integers(0, 500, count)] + noise + 1.0)


@pytest.mark.parametrize("kind", ["clustered", "random"])
def test_recall(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    random = unit(rng.normal(size=(ANN_ROWS, WIDTH)))
    vectors = _clustered(rng, ANN_ROWS) if kind == "clustered" else random
    written = database_of(tmp_path / "db", vectors)
    assert written.has_vector_index
    measured = measure_recall(written)
    assert measured is not None
    assert 0.95 <= min(measured) <= max(measured) <= 1
    database = open_database(tmp_path / "db", EMBEDDER)
    # Queries distributed like the pictures, and random ones, which like texts lie apart from all of them.
    for queries in (_clustered(rng, QUERIES), unit(rng.normal(size=(QUERIES, WIDTH)))):
        found = 0
        for query, cosines in zip(queries, queries @ vectors.T, strict=True):
            hits = search(database, torch.from_numpy(query))
            nearest = set(np.argsort(-cosines)[:10].tolist())
            found += len(nearest & {int(hit.path) for hit in hits})
            assert [hit.score for hit in hits] == pytest.approx([cosines[int(hit.path)] for hit in hits], abs=1e-5)
        assert found / (10 * QUERIES) >= 0.95


def test_the_index_is_used_and_includes_later_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    few = database_of(tmp_path / "few", unit(rng.normal(size=(ANN_ROWS - 1, 8))))
    assert not few.has_vector_index
    late = unit(np.arange(1, 9))[None]
    vectors = np.concatenate([unit(rng.normal(size=(ANN_ROWS, 8))), late])
    database = database_of(tmp_path / "many", vectors[:-1])
    plan = database.table.search(late[0], vector_column_name="embedding").distance_type("cosine").explain_plan()
    assert "ANN" in plan
    database_of(tmp_path / "many", vectors)
    assert search(database, torch.from_numpy(late[0]), k=1)[0].path == str(ANN_ROWS)


def test_recall_is_measured_as_brute_force_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index a search finds all; a search that misses every second picture, half."""
    vectors = unit(np.random.default_rng(2).normal(size=(500, 16)))
    database = database_of(tmp_path / "db", np.concatenate([vectors, vectors[:100]]))  # with copies, which are as near
    assert measure_recall(database) == (1, 1)
    monkeypatch.setattr("codebrush.search.recall.search", lambda *args, **how: search(*args, **how)[::2])
    assert measure_recall(database) == (0.5, 0.5)
    assert measure_recall(database_of(tmp_path / "small", vectors[:9])) is None


def test_a_run_that_makes_the_index_says_what_it_finds(
    micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.search.vector_index.PLANS", (Plan(0, FLAT), Plan(256, "IvfSq")))
    write_scenes(tmp_path / "pictures", 300)
    clip = open_clip(micro_pack)[0]
    database = create_database(tmp_path / "db", EMBEDDER, clip.embed_dim)
    source = str(tmp_path / "pictures")
    made = index_pictures(database, [open_pictures(source)], clip)
    assert made.vector_index is not None
    assert (made.vector_index.kind, made.vector_index.rows) == ("IvfSq", 300)
    found = made.vector_index.recall_pictures, made.vector_index.recall_texts
    assert all(each is not None and 0 < each <= 1 for each in found)  # random weights: all pictures are nearly alike
    assert index_pictures(database, [open_pictures(source)], clip).vector_index is None
