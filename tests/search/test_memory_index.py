"""Searches in memory find what searches on disk find, and what was written since."""

import gc
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
import torch

from codebrush.search import memory_index, places
from codebrush.search.database import Database, open_database
from codebrush.search.memory_index import MemoryIndex, MemoryIndexes, Unwanted, bytes_of, read_index
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
    return memory.nearest(database.place, database.table, database.open_table, query, k) is not None


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


@pytest.mark.parametrize("kept", [True, False])
def test_cells_come_from_memory_where_they_fit_and_thumbnails_when_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(memory_index, "MOST_BYTES", bytes_of(ROWS, WIDTH) + 1_000)
    query, plain = near(1, 1)[0], open_database(folder, EMBEDDER)
    plain.table.update(values={"thumbnail": b"a small picture"})
    database, memory = held(folder, query)
    assert answers(memory, database, query)
    (known,) = memory._known.values()
    assert known.index is not None
    assert (known.index.cells is not None) is kept
    assert (known.index.bytes > bytes_of(ROWS, WIDTH)) is kept
    for thumbnails in (True, False):
        mine, its = (search(each, torch.from_numpy(query), k=20, thumbnails=thumbnails) for each in (database, plain))
        assert [replace(hit, score=0.0) for hit in mine] == [replace(hit, score=0.0) for hit in its]
        assert {hit.thumbnail for hit in mine} == {b"a small picture" if thumbnails else b""}


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


@pytest.mark.parametrize("way", ["made again", "made again where nothing tells", "restored from a copy"])
def test_another_database_in_the_same_place_with_as_many_versions_is_searched_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    query, copy = near(1, 1)[0], tmp_path / "copy"
    if way == "made again where nothing tells":  # as in object storage
        monkeypatch.setattr(places.Folder, "stamp", lambda _: None)
        monkeypatch.setattr(places.Folder, "stamp_of", lambda *_: None)
    shutil.copytree(folder, copy)
    open_database(folder, EMBEDDER).delete(["0"])
    database, memory = held(folder, query)
    assert answers(memory, database, query)
    version = database.table.version
    shutil.rmtree(folder)
    if way == "restored from a copy":
        shutil.copytree(copy, folder)
    else:
        database_of(folder, near(3, ROWS))
    plain = open_database(folder, EMBEDDER)
    plain.delete([hit.path for hit in search(plain, torch.from_numpy(query), k=3)])
    assert database.table.version == version  # by which alone it could not be told
    for _ in range(2):
        mine, its = (search(each, torch.from_numpy(query), thumbnails=False) for each in (database, plain))
        assert [hit.path for hit in mine] == [hit.path for hit in its]
        memory.wait()
    assert answers(memory, database, query)


class Counted:
    """A table that counts how often it is asked for its version, which is LanceDB's unless another is given."""

    def __init__(self, table: Any) -> None:
        self.table, self.asked, self.given = table, 0, None

    @property
    def version(self) -> int:
        self.asked += 1
        return self.given or self.table.version


def test_lancedb_is_asked_for_its_version_only_after_a_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SAME_TIME", 0)
    query = near(1, 1)[0]
    database, memory = held(folder, query)
    table = Counted(database.table)

    def found() -> bool:
        return memory.nearest(database.place, table, database.open_table, query, 10) is not None

    assert [found() for _ in range(3)] == [True] * 3
    assert table.asked == 0
    database_of(folder, near(0, ROWS))
    assert not found()
    assert table.asked == 1
    memory.wait()
    assert found()
    monkeypatch.setattr(places, "SAME_TIME", 2**62)  # the last change is always recent
    assert [found() for _ in range(3)] == [True] * 3
    assert table.asked == 4


def test_a_search_that_knows_an_older_version_leaves_the_newer_index(folder: Path) -> None:
    query = near(1, 1)[0]
    database, memory = held(folder, query)
    late = Counted(database.table)
    late.given = database.table.version - 1
    known = dict(memory._known)
    assert memory.nearest(database.place, late, database.open_table, query, 10) is None
    assert memory._known == known
    assert answers(memory, database, query)


def test_a_search_without_memory_for_a_thread_stays_on_disk(folder: Path) -> None:
    query, memory = near(1, 1)[0], MemoryIndexes()
    with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        database = open_database(folder, EMBEDDER, memory=memory)
        assert len(search(database, torch.from_numpy(query))) == 10
    memory.close()
    assert not answers(memory, database, query)


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
    for name, value in (("FEWEST_ROWS", ROWS + 1), ("MOST_BYTES", bytes_of(ROWS, WIDTH) - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(memory_index, name, value)
            database, memory = held(folder, query)
            assert not answers(memory, database, query)
            assert len(search(database, torch.from_numpy(query))) == 10


def test_two_tables_that_do_not_fit_together_do_not_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, query, made = MemoryIndexes(), near(1, 1)[0], []
    monkeypatch.setattr(memory_index, "MOST_BYTES", 2 * bytes_of(ROWS, WIDTH) - 1)
    build = MemoryIndex.__init__
    monkeypatch.setattr(MemoryIndex, "__init__", lambda index, *given: (made.append(1), build(index, *given))[1])
    for name in ("a", "b"):
        database_of(tmp_path / name, near(0, ROWS))
    opened = {name: open_database(tmp_path / name, EMBEDDER, memory=memory) for name in ("a", "b")}
    for name in "abababab":
        search(opened[name], torch.from_numpy(query))
        memory.wait()
    assert len(made) == 1
    assert [answers(memory, opened[name], query) for name in ("a", "b")] == [True, False]
    monkeypatch.setattr(memory_index, "IDLE", 0.0)  # nobody searches the first any more
    search(opened["b"], torch.from_numpy(query))
    memory.wait()
    monkeypatch.setattr(memory_index, "IDLE", 600.0)
    assert [answers(memory, opened[name], query) for name in ("b", "a")] == [True, False]


def test_a_database_that_is_deleted_and_made_again_is_searched_as_it_is(folder: Path) -> None:
    query = near(1, 1)[0]
    _, memory = held(folder, query)
    before = open_database(folder, EMBEDDER).table.version
    shutil.rmtree(folder)
    others = near(3, ROWS)
    database_of(folder, others)
    database = open_database(folder, EMBEDDER, memory=memory)
    assert database.table.version == before  # by which alone it could not be told
    best = np.argsort(-(others @ query))[:10].tolist()
    for _ in range(2):
        assert [int(hit.path) for hit in search(database, torch.from_numpy(query))] == best
        memory.wait()
    assert answers(memory, database, query)


def test_zeros_are_found_as_on_the_disk(tmp_path: Path) -> None:
    vectors = near(0, ROWS)
    vectors[7] = 0
    database_of(tmp_path / "db", vectors)
    away = -unit(vectors.sum(0))
    database, memory = held(tmp_path / "db", away)
    assert answers(memory, database, away)
    hits, plain = (
        search(each, torch.from_numpy(away)) for each in (database, open_database(tmp_path / "db", EMBEDDER))
    )
    assert "7" not in [hit.path for hit in hits]
    assert all(np.isfinite(hit.score) for hit in hits)
    assert len(plain) == len(hits)
    nothing = np.zeros(WIDTH, np.float32)
    assert not answers(memory, database, nothing)


def test_many_threads_search_at_once(folder: Path) -> None:
    queries = near(1, 40)
    database, memory = held(folder, queries[0])
    one_by_one = [search(database, torch.from_numpy(query)) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda query: search(database, torch.from_numpy(query)), queries))
    assert at_once == one_by_one
    assert answers(memory, database, queries[0])


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
    database = open_database(folder, EMBEDDER)
    version = database.table.version
    assert read_index(database.open_table, version - 1, lambda: True) is None
    assert isinstance(read_index(database.open_table, version, lambda: True), MemoryIndex)


def test_making_an_index_ends_at_any_point_once_it_is_not_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_index, "AT_ONCE", 1_000)
    database = open_database(folder, EMBEDDER)

    def read(wanted: Iterator[bool]) -> MemoryIndex | None:
        return read_index(database.open_table, database.table.version, lambda: next(wanted))

    asked = count()
    assert read(number >= 0 for number in asked) is not None
    points, places = next(asked), set[str]()
    for last in range(points):
        with pytest.raises(Unwanted) as stopped:
            read(iter([True] * last + [False]))
        places.add(stopped.traceback[-2].name)
    assert points >= 1 + 3 + 1 + 3 + 3 + 1  # reading, coding and comparing in three parts
    assert places == {"read_index", "_parts_of", "__init__", "_parts", "_enough"}


def test_an_index_that_is_out_of_date_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query, given_up = near(1, 1)[0], []
    memory = MemoryIndexes()
    database = open_database(folder, EMBEDDER, memory=memory)
    read = memory_index.read_index

    def slow(again: Any, version: int, wanted: Any, *given: Any, **more: Any) -> Any:
        if not given_up:  # while it reads, somebody writes and somebody searches
            given_up.append(version)
            database.delete(["5"])
            search(database, torch.from_numpy(query))
            assert not wanted()
        return read(again, version, wanted, *given, **more)

    monkeypatch.setattr(memory_index, "read_index", slow)
    search(database, torch.from_numpy(query))
    for _ in range(2):
        memory.wait()
    assert given_up
    assert answers(memory, database, query)
    assert "5" not in [hit.path for hit in search(database, torch.from_numpy(query), k=100)]


def test_a_process_that_ends_does_not_wait_for_an_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_index, "QUIET", 60.0)
    memory, query = MemoryIndexes(), near(1, 1)[0]
    search(open_database(folder, EMBEDDER, memory=memory), torch.from_numpy(query))
    began = time.monotonic()
    memory.close()
    assert time.monotonic() - began < 10


def test_what_nobody_holds_is_freed(folder: Path) -> None:
    _, memory = held(folder, near(1, 1)[0])
    gone = weakref.ref(memory)
    del memory, _
    gc.collect()
    assert gone() is None


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


def test_the_prompt_of_the_command_searches_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt gives its database a memory, and one text alone does not."""
    from codebrush.cli.output.search_session import Session
    from codebrush.search.finding import Query

    database = open_database(folder, EMBEDDER)
    monkeypatch.setattr(Session, "answer", lambda session, text: print(text, session.database.memory is not None))
    session = Session(cast(Any, None), database, Query(), None, None, False)
    session.answer("one")
    session.answer_each(["first", "second"])
    assert capsys.readouterr().out.split() == ["one", "False", "first", "True", "second", "True"]
