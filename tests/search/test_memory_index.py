"""Searches in memory find what searches on disk find, and what was written since."""

import importlib.util
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codebrush.search import memory_index
from codebrush.search.database import Database, open_database
from codebrush.search.memory_index import MemoryIndex, MemoryIndexes, Stopped, read_index
from codebrush.search.queries import search
from search_helpers import EMBEDDER, database_of, unit

pytest.importorskip("faiss")

ROWS, WIDTH = 3_000, 32


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables are worth an index, at once."""
    monkeypatch.setattr(memory_index, "FEWEST_ROWS", 1_000)
    monkeypatch.setattr(memory_index, "QUIET", 0.0)


def near(seed: int, count: int, towards: float = 0.7) -> np.ndarray:
    """Unit vectors like those of CLIP: pictures around many centres on one side of the origin, texts on the other."""
    centres, side = unit(np.random.default_rng(7).normal(size=(20, WIDTH))), unit(np.ones((1, WIDTH)))
    draw = np.random.default_rng(seed)
    return unit(towards * side + centres[draw.integers(0, 20, count)] + draw.normal(size=(count, WIDTH)) * 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    database_of(tmp_path / "db", near(0, ROWS))
    return tmp_path / "db"


def held(folder: Path, query: np.ndarray) -> tuple[Database, MemoryIndexes]:
    """A database whose embeddings are in memory."""
    memory = MemoryIndexes()
    database = open_database(folder, EMBEDDER, memory=memory)
    search(database, torch.from_numpy(query))
    memory.wait()
    return database, memory


def answers(memory: MemoryIndexes, database: Database, query: np.ndarray, k: int = 10) -> bool:
    """Whether a search is made in memory."""
    return memory.nearest(str(database.place), database.table, database.open_table, query, k) is not None


@pytest.mark.parametrize("towards", [0.7, -0.7])
def test_it_finds_what_the_disk_finds_with_the_same_scores(folder: Path, towards: float) -> None:
    queries = near(1, 20, towards)
    database, memory = held(folder, queries[0])
    plain = open_database(folder, EMBEDDER)
    assert answers(memory, database, queries[0])
    for k in (1, 10, 100):
        shared = 0
        for query in queries:
            mine, its = (search(each, torch.from_numpy(query), k=k) for each in (database, plain))
            known = {hit.path: hit for hit in its}
            assert len(mine) == k
            assert [hit.score for hit in mine] == sorted((hit.score for hit in mine), reverse=True)
            for hit in mine:
                same = known.get(hit.path)
                if same is not None:
                    shared += 1
                    assert replace(hit, score=same.score) == same
                    assert hit.score == pytest.approx(same.score, abs=2e-6)
        assert shared >= 0.98 * k * len(queries)


def test_rows_written_since_are_found_at_once_and_then_in_memory(folder: Path) -> None:
    late = near(5, 1)[0]
    database, memory = held(folder, late)
    writer = database_of(folder, np.concatenate([near(0, ROWS), late[None]]))
    assert not answers(memory, database, late)
    assert search(database, torch.from_numpy(late))[0].path == str(ROWS)
    memory.wait()
    assert answers(memory, database, late)
    assert search(database, torch.from_numpy(late))[0].path == str(ROWS)
    writer.delete([str(ROWS)])
    assert str(ROWS) not in [hit.path for hit in search(database, torch.from_numpy(late))]


def test_conditions_and_many_results_are_searched_on_disk(folder: Path) -> None:
    query = near(1, 1)[0]
    database, memory = held(folder, query)
    assert all(int(hit.path) < 50 for hit in search(database, torch.from_numpy(query), where="size < 50"))
    assert not answers(memory, database, query, k=memory_index.MOST_RESULTS + 1)
    assert len(search(database, torch.from_numpy(query), k=500)) == 500


def test_rows_without_an_embedding_are_never_found(tmp_path: Path) -> None:
    database = database_of(tmp_path / "db", near(0, ROWS))
    database.table.update(where="path = '0'", values_sql={"embedding": "NULL"})
    query = near(0, 1)[0]
    searched, memory = held(tmp_path / "db", query)
    assert answers(memory, searched, query)
    assert "0" not in {hit.path for hit in search(searched, torch.from_numpy(query), k=100)}


def test_tables_that_are_too_small_or_too_large_stay_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = near(1, 1)[0]
    for name, value in (("FEWEST_ROWS", ROWS + 1), ("MOST_BYTES", ROWS * WIDTH)):
        with monkeypatch.context() as patch:
            patch.setattr(memory_index, name, value)
            database, memory = held(folder, query)
            assert not answers(memory, database, query)
            assert len(search(database, torch.from_numpy(query))) == 10


def test_what_was_not_searched_for_longest_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, query = MemoryIndexes(), near(1, 1)[0]
    monkeypatch.setattr(memory_index, "MOST_BYTES", 2 * ROWS * (WIDTH * 2 + WIDTH // 4 + 8))
    for name in ("a", "b", "c"):
        database_of(tmp_path / name, near(0, ROWS))
    opened = {name: open_database(tmp_path / name, EMBEDDER, memory=memory) for name in ("a", "b", "c")}
    for name in ("a", "b", "a", "c"):
        search(opened[name], torch.from_numpy(query))
        memory.wait()
    assert [answers(memory, opened[name], query) for name in ("a", "c")] == [True, True]
    assert not answers(memory, opened["b"], query)


def test_an_index_that_finds_too_little_is_not_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_index, "LEAST_RECALL", 1.1)
    query = near(1, 1)[0]
    database, memory = held(folder, query)
    assert not answers(memory, database, query)
    assert len(search(database, torch.from_numpy(query))) == 10


def test_without_faiss_searches_stay_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    query = near(1, 1)[0]
    database, memory = held(folder, query)
    assert not answers(memory, database, query)
    assert len(search(database, torch.from_numpy(query))) == 10


def test_an_index_of_another_version_is_none(folder: Path) -> None:
    table = open_database(folder, EMBEDDER).table
    assert read_index(table, table.version - 1, threading.Event()) is None
    assert isinstance(read_index(table, table.version, threading.Event()), MemoryIndex)


def test_making_an_index_ends_with_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    stop.set()
    table = open_database(folder, EMBEDDER).table
    with pytest.raises(Stopped):
        read_index(table, table.version, stop)
    monkeypatch.setattr(memory_index, "QUIET", 60.0)
    memory, query = MemoryIndexes(), near(1, 1)[0]
    search(open_database(folder, EMBEDDER, memory=memory), torch.from_numpy(query))
    began = time.monotonic()
    memory.close()
    assert time.monotonic() - began < 10


def test_a_program_that_ends_meanwhile_ends_well(folder: Path) -> None:
    program = (
        "import sys, numpy, torch; from codebrush.search import memory_index; memory_index.FEWEST_ROWS = 1000\n"
        "memory_index.QUIET = float(sys.argv[2])\n"
        "from codebrush.search.database import open_database; from codebrush.search.queries import search\n"
        "database = open_database(sys.argv[1], memory=memory_index.MemoryIndexes())\n"
        f"print(len(search(database, torch.ones({WIDTH}) / {WIDTH} ** 0.5)))"
    )
    for quiet in ("0", "60"):
        done = subprocess.run([sys.executable, "-c", program, str(folder), quiet], capture_output=True, timeout=120)
        assert (done.returncode, done.stdout.decode().strip(), done.stderr.decode()) == (0, "10", "")


def test_faiss_is_in_the_extra_for_search() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(each.startswith("faiss-cpu") for each in extras["search"])
    assert importlib.util.find_spec("faiss") is not None
