"""A database on disk: which CLIP made it, folders that are none, and damaged ones."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codebrush.errors import CodebrushError, DataError, PackError
from codebrush.search.database import Embedder, create_database, open_database
from codebrush.search.places import LOCK, TABLE_FOLDER
from codebrush.search.queries import search
from search_helpers import EMBEDDER, database_of, unit


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("databases") / "intact"
    vectors = unit(np.random.default_rng(0).normal(size=(40, 8)))
    database_of(folder, vectors, ["a red flower", "the blue dog"] * 20)
    return folder


def _ask(folder: Path, where: str | None = None) -> None:
    database = open_database(folder, EMBEDDER)
    search(database, torch.eye(8)[0], "flower", mode="hybrid", k=5, where=where)


def test_another_clip_is_refused_by_both_names(intact: Path) -> None:
    other = Embedder("another", "b" * 64)
    for opened in (lambda: open_database(intact, other), lambda: create_database(intact, other, 8)):
        with pytest.raises(PackError, match=r"'micro' \(aaaaaaaa\).*'another' \(bbbbbbbb\).*--pack micro"):
            opened()
    assert EMBEDDER.fit is None
    assert open_database(intact, Embedder("renamed", EMBEDDER.clip)).embedder == EMBEDDER  # only the weights count


def test_places_that_are_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no database in .*none: make one with codebrush index"):
        open_database(tmp_path / "none", EMBEDDER)
    file = tmp_path / "file"
    file.write_text("hello")
    for opened in (lambda: open_database(file, EMBEDDER), lambda: create_database(file, EMBEDDER, 8)):
        with pytest.raises(DataError, match=r"is a file: name a folder|is a file, not a database"):
            opened()
    with pytest.raises(DataError, match="is not a database but holds other things"):
        create_database(tmp_path, EMBEDDER, 8)
    data = tmp_path / "fake" / TABLE_FOLDER / "data"
    data.mkdir(parents=True)
    (data / "rows.lance").touch()
    with pytest.raises(DataError, match="is damaged"):
        open_database(tmp_path / "fake", EMBEDDER)


def test_a_run_that_died_before_its_first_row_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    assert create_database(tmp_path, EMBEDDER, 8).count() == 0


def test_a_disk_that_was_full_before_the_table_was_made_is_no_obstacle(tmp_path: Path) -> None:
    table = tmp_path / "db" / TABLE_FOLDER
    for part in ("_versions", "_transactions", "data"):
        (table / part).mkdir(parents=True)
    (table / "_transactions" / "0-1.txn").write_bytes(b"half")
    with pytest.raises(DataError, match="no database in"):
        open_database(tmp_path / "db", EMBEDDER)
    assert create_database(tmp_path / "db", EMBEDDER, 8).count() == 0


@pytest.mark.parametrize("content", [b"", b'{"version', b"noise"])
def test_the_hint_of_the_newest_version_may_be_half_written(intact: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(intact, tmp_path / "db")
    hint = tmp_path / "db" / TABLE_FOLDER / "_versions" / "latest_version_hint.json"
    assert hint.exists()
    hint.write_bytes(content)
    _ask(tmp_path / "db")
    create_database(tmp_path / "db", EMBEDDER, 8).table.delete("path = '3'")
    assert open_database(tmp_path / "db", EMBEDDER).count() == open_database(intact, EMBEDDER).count() - 1


def test_a_run_that_died_before_its_indices_is_no_obstacle(tmp_path: Path) -> None:
    database = database_of(tmp_path / "db", np.eye(2, 8, dtype=np.float32), ["a red flower", "a dog"])
    database.table.drop_index("caption_idx")
    create_database(tmp_path / "db", EMBEDDER, 8)
    assert [hit.path for hit in search(database, None, "dog", mode="text")] == ["1"]


@pytest.mark.parametrize("part", ["_versions", "data", "_indices"])
@pytest.mark.parametrize("how", ["gone", "empty", "halved", "noise"])
def test_damage_is_one_line(intact: Path, tmp_path: Path, part: str, how: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(intact, folder)
    for path in (folder / TABLE_FOLDER / part).rglob("*"):
        if not path.is_file():
            continue
        if how == "gone":
            path.unlink()
        else:
            content = path.read_bytes()
            noise = np.random.default_rng(len(content)).bytes(len(content))
            path.write_bytes({"empty": b"", "halved": content[: len(content) // 2], "noise": noise}[how])
    for where in (None, "path = '3'"):  # the condition is not blamed
        with pytest.raises(CodebrushError) as caught:
            _ask(folder, where)
        assert re.fullmatch(r".*damaged is damaged \(.+\): delete it, and index the pictures again", str(caught.value))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CodebrushError, match=r"cannot write .*: Not a directory"):
        create_database(tmp_path / "file" / "db", EMBEDDER, 8)


def test_rows_with_odd_paths(tmp_path: Path) -> None:
    database = database_of(tmp_path / "db", np.eye(4, dtype=np.float32))
    assert database.delete(["it's", "2", "'; DROP"]) == 1
    assert database.count() == 3
    assert database.count("path = '2'") == 0
