"""The vector index follows the number of rows and finds what it should: by pictures, by texts, with conditions."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from codebrush.errors import CodebrushError
from codebrush.search.database import Database, create_database, open_database
from codebrush.search.queries import search
from codebrush.search.recall import TARGET, described, tune
from codebrush.search.removal import remove_sources
from codebrush.search.vector_index import (
    ALL,
    FLAT,
    MOST_REFINED,
    PLANS,
    SETTINGS,
    IndexSettings,
    Plan,
    kind_of,
    plan_for,
    settings_of,
    store_settings,
)
from search_helpers import EMBEDDER, database_of, unit

WIDTH, ROWS, CLUSTERS = 64, 6_000, 20
FEW = (Plan(0, FLAT), Plan(500, "IvfSq", bits=8), Plan(3_000, "IvfRq", bits=4))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds of the table of plans, lowered, and fewer queries to measure recalls by."""
    monkeypatch.setattr("codebrush.search.vector_index.PLANS", FEW)
    monkeypatch.setattr("codebrush.search.recall.QUERIES", 8)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with `ROWS` pictures and the index for large tables."""
    folder = tmp_path_factory.mktemp("tuned") / "db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codebrush.search.vector_index.PLANS", FEW)
        tune(database_of(folder, near(0, ROWS)))
    return folder


def near(seed: int, count: int, towards: float = 0.7) -> np.ndarray:
    """Unit vectors like those of CLIP, around many centres: of pictures on one side of the origin, of texts (-0.7) on
    the other.
    """
    centres, side = unit(np.random.default_rng(7).normal(size=(CLUSTERS, WIDTH))), unit(np.ones((1, WIDTH)))
    draw = np.random.default_rng(seed)
    spread = draw.normal(size=(count, WIDTH)) * (0.8 / np.sqrt(WIDTH))
    return unit(towards * side + centres[draw.integers(0, CLUSTERS, count)] + spread)


def recall(
    database: Database, queries: np.ndarray, vectors: np.ndarray, k: int = 10, where: str | None = None
) -> float:
    """The share of the k nearest rows of `vectors` that a search finds; those of zeros do not count."""
    found = 0
    for query, cosines in zip(queries, np.where(vectors.any(1), queries @ vectors.T, -1), strict=True):
        hits = search(database, torch.from_numpy(query), k=k, where=where)
        found += len({int(hit.path) for hit in hits} & set(np.argsort(-cosines)[:k].tolist()))
    return found / (k * len(queries))


def index_id(database: Database) -> str:
    return next(index.index_uuid for index in database.table.list_indices() if "embedding" in index.columns)


def set_settings(database: Database, **changed: int) -> IndexSettings:
    settings = settings_of(database.table.schema)
    assert settings is not None
    store_settings(database.table, IndexSettings(**{**settings.__dict__, **changed}))
    return settings


def test_the_kind_follows_the_number_of_rows(tmp_path: Path, few: None) -> None:
    assert [plan_for(rows, WIDTH).kind for rows in (0, 499, 500, 2_999, 3_000)] == [
        FLAT, FLAT, "IvfSq", "IvfSq", "IvfRq"
    ]  # fmt: skip
    assert plan_for(3_000, 12).kind == "IvfSq"  # RaBitQ packs eight values together
    kinds = []
    for rows in (400, 600, 3_200):
        database = database_of(tmp_path / "db", near(0, rows))
        kinds.append(kind_of(database.table))
        settings = settings_of(database.table.schema)
        assert (settings.kind if settings else FLAT) == kinds[-1]
    assert kinds == [FLAT, "IvfSq", "IvfRq"]
    assert kind_of(database_of(tmp_path / "narrow", near(0, 3_200)[:, :12]).table) == "IvfSq"


def test_the_plans_begin_at_no_rows_and_grow() -> None:
    rows = [plan.rows for plan in PLANS]
    assert rows[0] == 0
    assert rows == sorted(set(rows))
    assert [plan_for(count, 512).kind for count in (19_999, 20_000, 2_000_000, 10**9)] == [
        FLAT, "IvfSq", "IvfRq", "IvfRq"
    ]  # fmt: skip


def test_a_large_index_reaches_the_recall_for_pictures_and_texts(tuned: Path) -> None:
    database = open_database(tuned, EMBEDDER)
    settings = settings_of(database.table.schema)
    assert settings is not None
    assert (settings.kind, settings.rows, settings.partition_rows) == ("IvfRq", ROWS, round(ROWS**0.5))
    assert settings.probes < ROWS / settings.partition_rows
    assert settings.refine < MOST_REFINED
    assert min(settings.recall_pictures or 0, settings.recall_texts or 0) >= TARGET
    vectors = near(0, ROWS)
    assert recall(database, near(1, 50), vectors) >= 0.95
    assert recall(database, near(2, 50, towards=-0.7), vectors) >= 0.95
    assert recall(database, near(3, 20), vectors, k=1) >= 0.95
    assert recall(database, near(4, 20, towards=-0.7), vectors, k=100) >= 0.95


def test_queries_search_as_much_as_is_stored(tuned: Path) -> None:
    database, vectors = open_database(tuned, EMBEDDER), near(0, ROWS)
    queries, plain = near(5, 30, towards=-0.7), recall(database, near(5, 30, towards=-0.7), vectors)
    kept = set_settings(database, probes=1)
    one_partition = recall(database, queries, vectors)
    store_settings(database.table, kept)
    assert one_partition < 0.7 < 0.95 <= plain
    assert recall(database, queries, vectors) == plain


def test_a_condition_finds_rows_in_partitions_that_no_other_query_searches(tuned: Path) -> None:
    database, vectors = open_database(tuned, EMBEDDER), near(0, ROWS)
    kept = set_settings(database, probes=1)
    few_rows = np.random.default_rng(1).choice(ROWS, 7, replace=False).tolist()
    hits = search(database, torch.from_numpy(near(6, 1)[0]), where=f"size IN ({', '.join(map(str, few_rows))})")
    many = recall(database, near(7, 30), vectors * (np.arange(ROWS) % 20 == 3)[:, None], where="size % 20 = 3")
    store_settings(database.table, kept)
    assert {int(hit.path) for hit in hits} == set(few_rows)
    assert many >= 0.95


def test_fewer_rows_in_the_partitions_searched_than_asked_for_are_made_up_by_others(tuned: Path) -> None:
    database = open_database(tuned, EMBEDDER)
    kept = set_settings(database, probes=1)
    hits = search(database, torch.from_numpy(near(8, 1)[0]), k=5_000)
    store_settings(database.table, kept)
    assert len({hit.path for hit in hits}) == 5_000


@pytest.mark.parametrize("kind", ["IvfSq", "IvfRq"])
def test_an_index_is_made_anew_when_the_table_has_grown_tenfold(
    kind: str, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.search.vector_index.PLANS", (Plan(0, FLAT), Plan(300, kind, bits=4)))
    vectors, folder = near(0, 3_000), tmp_path / "db"
    database = database_of(folder, vectors[:300])
    tune(database)
    made = settings_of(database.table.schema)
    assert database_of(folder, vectors[:2_999]).settle() == (kind == "IvfRq")  # its recall is measured again
    assert settings_of(database.table.schema) == made
    first, late = index_id(database), torch.from_numpy(vectors[2_998])
    assert search(database, late, k=1)[0].path == "2998"  # later rows are in the index that there is
    again = tune(database)
    assert again is not None
    assert (again.rows, again.measured_rows) == (300, 2_999)
    assert not database.settle()
    database_of(folder, vectors)
    grown = tune(database)
    assert grown is not None
    assert grown.rows == 3_000
    assert grown.partition_rows == (0 if kind == "IvfSq" else 55)
    assert index_id(database) != first
    assert recall(database, near(9, 20, towards=-0.7), vectors) >= 0.95


def test_a_large_index_is_made_anew_when_little_is_left(tmp_path: Path, few: None) -> None:
    folder = tmp_path / "db"
    database = database_of(folder, near(0, 6_000))
    tune(database)
    database.table.update(values={"source": "gone"}, where="size >= 600")
    database.table.update(values={"source": "kept"}, where="size < 600")
    report = remove_sources(database, ["gone"])
    assert report.removed == 5_400
    assert kind_of(database.table) == "IvfSq"
    assert report.vector_index == settings_of(database.table.schema)
    assert recall(database, near(1, 10), near(0, 6_000)[:600]) == 1


def test_an_index_without_settings_stays_as_it_was(tmp_path: Path, few: None) -> None:
    """Databases of version 0.2 and below have none: they are neither made anew nor searched otherwise."""
    database = database_of(tmp_path / "db", near(0, 1_000))
    database.table.update_field_metadata({"path": "embedding", "metadata": {"codebrush:vector_index": None}})
    before, query = index_id(database), near(1, 1)[0]
    reopened = open_database(tmp_path / "db", EMBEDDER)
    assert settings_of(reopened.table.schema) is None
    plain = reopened.table.search(query, vector_column_name="embedding").distance_type("cosine")
    expected = plain.nprobes(ALL).refine_factor(2).limit(10).to_list()
    hits = search(reopened, torch.from_numpy(query))
    assert [(hit.path, hit.score) for hit in hits] == [(row["path"], 1 - row["_distance"]) for row in expected]
    assert not reopened.settle()
    assert index_id(reopened) == before
    assert tune(reopened) is None
    database_of(tmp_path / "db", near(0, 3_000))
    assert kind_of(reopened.table) == "IvfRq"


def test_an_index_that_was_not_measured_is_searched_whole_and_measured_next_time(tmp_path: Path, few: None) -> None:
    """As when the process dies between making and measuring it."""
    vectors = near(0, 3_200)
    database = database_of(tmp_path / "db", vectors)
    settings = settings_of(database.table.schema)
    assert settings is not None
    assert settings.probes == ALL
    assert not settings.measured_rows
    assert recall(database, near(1, 20, towards=-0.7), vectors) >= 0.99
    assert database.settle()
    tune(database)
    assert not database.settle()


def test_an_index_that_was_not_finished_is_made_next_time(tmp_path: Path, few: None) -> None:
    """As when the process dies while an index for ten times as many rows is made."""
    database = database_of(tmp_path / "db", near(0, 3_200))
    tune(database)
    before = index_id(database)
    store_settings(database.table, IndexSettings(FLAT, refine=MOST_REFINED))
    assert database.settle()
    assert index_id(database) != before
    assert tune(database) is not None


def test_a_version_that_is_restored_has_its_own_index_and_settings(tmp_path: Path, few: None) -> None:
    vectors = near(0, 3_200)
    database = database_of(tmp_path / "db", vectors[:600])
    made, version = tune(database), database.table.version
    database_of(tmp_path / "db", vectors)
    tune(database)
    assert kind_of(database.table) == "IvfRq"
    database.table.restore(version)
    assert (database.count(), kind_of(database.table)) == (600, "IvfSq")
    assert settings_of(database.table.schema) == made
    assert recall(database, near(1, 10), vectors[:600]) == 1
    assert not database.settle()


def test_two_writers_that_finish_at_once_leave_one_measured_index(tmp_path: Path, few: None) -> None:
    said = finish_twice(tmp_path / "db", measure=True)
    assert said == ["", ""]
    database = open_database(tmp_path / "db")
    settings = settings_of(database.table.schema)
    assert settings is not None
    assert (database.count(), kind_of(database.table), settings.kind) == (4 * FEW[1].rows, "IvfSq", "IvfSq")
    assert settings.is_measured_for(4 * FEW[1].rows)
    assert not database.settle()


def test_two_writers_that_finish_at_once_on_object_storage_leave_an_index_or_one_says_so(
    storage: str, few: None
) -> None:
    said = finish_twice(f"{storage}/finish", measure=False)
    assert "" in said
    assert [each for each in said if each and "another process wrote to" not in each] == []
    database = open_database(f"{storage}/finish")
    database.settle()
    assert (database.count(), kind_of(database.table)) == (4 * FEW[1].rows, "IvfSq")
    assert recall(database, near(1, 3), near(0, 4 * FEW[1].rows)) == 1


def test_an_index_that_another_process_made_anew_meanwhile_keeps_its_own_settings(tmp_path: Path, few: None) -> None:
    database = database_of(tmp_path / "db", near(0, 600))
    other: list[IndexSettings | None] = []

    def meanwhile(done: int, total: int) -> None:
        assert (done, total) == (1, 1)
        other.append(settings_of(database_of(tmp_path / "db", near(0, 3_200)).table.schema))

    assert tune(database, meanwhile) is None
    assert [each.kind for each in other if each] == ["IvfRq"]
    assert settings_of(database.table.schema) == other[0]
    assert database.settle()  # and is measured next time


@pytest.mark.parametrize(("reached", "probes", "refine"), [(True, 8, 2), (False, ALL, MOST_REFINED)])
def test_few_measurements_find_the_settings_and_what_is_compared_has_a_limit(
    reached: bool, probes: int, refine: int, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.search.recall.TARGET", -1.0 if reached else 1.01)
    database = database_of(tmp_path / "db", near(0, 3_200))
    steps: list[tuple[int, int]] = []
    found = tune(database, lambda done, total: steps.append((done, total)))
    assert found is not None
    assert (found.probes, found.refine, found.measured_rows) == (probes, refine, 3_200)
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert len(steps) <= steps[0][1] < 8
    assert ("64 times as many rows" in described(found)) != reached


def test_settings_that_a_later_version_stored_are_read(tmp_path: Path, few: None) -> None:
    database = database_of(tmp_path / "db", near(0, 600))
    stored = tune(database)
    assert stored is not None
    later = {"path": "embedding", "metadata": {SETTINGS: json.dumps({**asdict(stored), "rotations": 3})}}
    database.table.update_field_metadata(later)
    assert settings_of(database.table.schema) == stored
    assert search(database, torch.from_numpy(near(1, 1)[0]), k=1)


def test_an_index_that_stays_is_not_measured_when_pictures_are_removed(tmp_path: Path, few: None) -> None:
    database = database_of(tmp_path / "db", near(0, 6_000))
    made = tune(database)
    database.table.update(values={"source": "gone"}, where="size >= 3200")
    report = remove_sources(database, ["gone"])
    assert (report.removed, report.vector_index) == (2_800, None)
    assert settings_of(database.table.schema) == made
    assert database.settle()  # but by the next run that adds pictures


def finish_twice(place: str | Path, measure: bool) -> list[str]:
    """Two writers add half of the rows each, and settle at the same time; returns the errors."""
    create_database(place, EMBEDDER, WIDTH)
    together, half = Barrier(2), 2 * FEW[1].rows
    vectors = near(0, 2 * half)

    def finish(number: int) -> str:
        database = open_database(place)
        write(database, number * half, vectors[number * half :][:half])
        together.wait()
        try:
            if database.settle() and measure:
                tune(database)
        except CodebrushError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(finish, range(2)))


def write(database: Database, first: int, vectors: np.ndarray) -> None:
    import pyarrow as pa

    cells = {
        "path": pa.array([str(first + row) for row in range(len(vectors))]),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    schema = pa.schema([database.table.schema.field(name) for name in cells])
    database.write(pa.table(list(cells.values()), schema=schema))
