"""Indexing folders and data sources: what is added, updated, deleted and skipped, and the same when run again."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from codebrush.errors import DataError
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.pipeline import Codebrush
from codebrush.search.database import Database, create_database
from codebrush.search.index_report import IndexReport
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from search_helpers import EMBEDDER, write_scenes


@pytest.fixture(scope="module")
def clip(micro_pack: Path) -> CLIP:
    return open_clip(micro_pack)[0]


@pytest.fixture
def run(clip: CLIP, tmp_path: Path):
    """Index places into one database; returns the counts (added, updated, removed, unchanged, skipped)."""

    def index(*places: Path | str, captions: tuple[str, ...] = ()) -> tuple[int, ...]:
        report = index_pictures(database(), [open_pictures(str(place), captions) for place in places], clip)
        return (report.added, report.updated, report.removed, report.unchanged, len(report.skipped))

    def database() -> Database:
        return create_database(tmp_path / "db", EMBEDDER, clip.embed_dim)

    index.database = database  # pyright: ignore
    return index


def _rows(run, *columns: str) -> list[dict]:
    batches = run.database().rows(["path", *columns])
    return sorted((row for batch in batches for row in batch.to_pylist()), key=lambda row: row["path"])


def test_a_folder_and_then_its_changes(run, tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "pictures" / "deep", 6)
    folder = tmp_path / "pictures"
    assert run(folder) == (6, 0, 0, 0, 0)
    assert run(folder) == (0, 0, 0, 6, 0)
    shutil.copy(paths[0], paths[1])  # another picture
    paths[2].unlink()  # gone
    paths[3].with_suffix(".txt").write_text("new words")  # the same picture with another caption
    os.utime(paths[4], ns=(1, 1))  # touched
    write_scenes(folder, 1, first=100)
    assert run(folder) == (1, 2, 1, 3, 0)
    assert run(folder) == (0, 0, 0, 6, 0)
    rows = {Path(row["path"]).name: row for row in _rows(run, "embedding", "hash", "caption", "modified")}
    assert set(rows) == {"000.png", "001.png", "003.png", "004.png", "005.png", "100.png"}
    assert rows["001.png"]["embedding"] == pytest.approx(rows["000.png"]["embedding"], abs=1e-6)
    assert rows["001.png"]["hash"] == rows["000.png"]["hash"]
    assert rows["003.png"]["caption"] == "new words"
    assert rows["004.png"]["modified"] == 1


def test_only_new_pictures_are_embedded(run, clip: CLIP, tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "pictures", 4)
    run(tmp_path / "pictures")
    seen: list[int] = []
    os.utime(paths[0], ns=(1, 1))
    paths[1].with_suffix(".txt").write_text("new words")
    shutil.copy(write_scenes(tmp_path / "others", 1, first=9)[0], paths[2])
    with clip.image_encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))):
        run(tmp_path / "pictures")
    assert seen == [1]


def test_a_row_describes_its_picture(run, micro_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "pictures" / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 300, 4), np.uint8)).save(path)
    path.with_suffix(".txt").write_text("one\n\ntwo\none\n")
    run(tmp_path / "pictures")
    (row,) = _rows(run, "caption", "embedding", "width", "height", "size", "modified", "source", "thumbnail", "folder")
    assert row["path"] == str(path)
    assert (row["width"], row["height"], row["caption"]) == (300, 100, "one; two")
    assert (row["size"], row["modified"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert (row["source"], row["folder"]) == (str(tmp_path / "pictures"), "pictures")
    expected = Codebrush.from_pretrained(micro_pack, "cpu").embed_images([path])[0]
    assert torch.allclose(torch.tensor(row["embedding"]), expected, atol=1e-6)
    with Image.open(io.BytesIO(row["thumbnail"])) as small:
        assert small.size == (128, 43)
    assert len(row["thumbnail"]) < 10_000


def test_unreadable_pictures_are_skipped_and_reported(run, clip: CLIP, tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "pictures", 5)
    run(tmp_path / "pictures")
    paths[1].write_bytes(paths[1].read_bytes()[:60])  # it was fine before
    (tmp_path / "pictures" / "empty.png").touch()
    (tmp_path / "pictures" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    source = open_pictures(str(tmp_path / "pictures"))
    report = index_pictures(run.database(), [source], clip)
    assert isinstance(report, IndexReport)
    assert (report.added, report.updated, report.removed, report.unchanged) == (0, 0, 1, 4)
    reasons = {Path(each["path"]).name: each["reason"] for each in report.skipped}
    assert reasons.keys() == {"001.png", "empty.png", "dangling.png"}
    assert "cannot be decoded" in reasons["001.png"]
    assert reasons["dangling.png"] == "no such file or directory"
    assert str(paths[1]) not in {row["path"] for row in _rows(run)}


def test_names_that_are_not_utf8_are_indexed_in_escaped_form(run, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/dir\xe9"))
    (made, _) = write_scenes(folder, 2)
    made.rename(folder / os.fsdecode(b"caf\xe9.png"))
    assert run(folder) == (2, 0, 0, 0, 0)
    assert run(folder) == (0, 0, 0, 2, 0)
    assert f"{tmp_path}/dir\\xe9/caf\\xe9.png" in {row["path"] for row in _rows(run)}


def test_each_place_has_its_own_rows(run, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_scenes(first, 3)
    write_scenes(first / "inner", 2, first=10)
    write_scenes(second, 2)
    assert run(first, second, first / "inner") == (7, 0, 0, 0, 0)  # each picture once
    shutil.rmtree(second)
    (first / "inner" / "010.png").unlink()
    (first / "000.png").unlink()
    assert run(first / "inner") == (0, 0, 1, 1, 0)  # files that are gone elsewhere are not checked
    assert run(first) == (0, 0, 1, 3, 0)
    with pytest.raises(DataError, match="no such file or folder"):
        run(second)
    second.mkdir()
    assert run(second) == (0, 0, 2, 0, 0)
    assert run(first / "001.png") == (0, 0, 0, 1, 0)


def test_a_data_source_keeps_its_columns(run, tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "pictures", 4)
    image = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    table = {"id": ["a", "b", "b", "c"], "label": ["cat", "dog", "dog", None], "n": [1, 2, 3, 4], "a b": list("wxyz")}
    source = tmp_path / "pets.parquet"
    pq.write_table(pa.table({**table, "image": image}), source)
    assert run(source, captions=("a {label}",)) == (4, 0, 0, 0, 0)
    assert run(source, captions=("a {label}",)) == (0, 0, 0, 4, 0)
    rows = _rows(run, "caption", "n", "a_b", "modified")
    assert [row["path"].removeprefix(str(tmp_path)) for row in rows] == [
        f"/pets.parquet#{n}" for n in ("a", "b", "b~2", "c")
    ]
    assert [row["caption"] for row in rows] == ["a cat", "a dog", "a dog", ""]
    assert [(row["n"], row["a_b"], row["modified"]) for row in rows][1:3] == [(2, "x", None), (3, "y", None)]
    assert run.database().count("n > 2 AND label = 'dog'") == 1
    # Other contents of the same name, another type in a column, one row less.
    changed = {"id": ["a", "b"], "label": ["cat", "dog"], "n": ["one", "2"]}
    pq.write_table(pa.table({**changed, "image": [image[0], image[3]]}), source)
    assert run(source, captions=("a {label}",)) == (0, 2, 2, 0, 0)
    assert [row["n"] for row in _rows(run, "n")] == [None, 2]
    with pytest.raises(DataError, match="needs the column colour"):
        run(source, captions=("{colour}",))


def _source(tmp_path: Path, name: str, **columns: list) -> Path:
    """A Parquet file with a picture for each cell of `columns`."""
    count = len(next(iter(columns.values())))
    paths = write_scenes(tmp_path / name, count, captions=False, first=sum(map(ord, name)))
    image = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    path = tmp_path / f"{name}.parquet"
    pq.write_table(pa.table({"id": [f"{name}{number}" for number in range(count)], **columns, "image": image}), path)
    return path


def test_a_later_source_may_have_fractions_where_the_first_had_integers(run, clip: CLIP, tmp_path: Path) -> None:
    first = _source(tmp_path, "first", price=[3, 1], sold=[True, False], long=[2**60 + 1, 2**53 + 1])
    second = _source(tmp_path, "second", price=[2.5, 0.5], sold=[True, True], long=[7, 2**60 + 3])
    for place in (first, second):
        report = index_pictures(run.database(), [open_pictures(str(place))], clip)
        assert (report.added, report.unfit) == (2, [])
    rows = _rows(run, "price", "long", "sold")
    assert [row["price"] for row in rows] == [3, 1, 2.5, 0.5]
    assert [row["long"] for row in rows] == [2**60 + 1, 2**53 + 1, 7, 2**60 + 3]  # exactly
    assert [row["sold"] for row in rows] == [True, False, True, True]
    database = run.database()
    assert database.count("price > 2") == 2
    assert database.count("price = 3") == database.count("price IN (1, 7)") == database.count("long = 7") == 1


def test_cells_that_do_not_fit_are_reported_once_a_column(run, clip: CLIP, tmp_path: Path) -> None:
    first = _source(tmp_path, "first", price=[3], sold=[True], long=[2**60], word=["one"])
    later = {"price": ["dear", "2", "cheap"], "sold": [5, 1, 0], "long": [0.5, 2.0, 1.0], "word": [1, 2, 3]}
    second = _source(tmp_path, "second", **later)
    report = index_pictures(run.database(), [open_pictures(str(place)) for place in (first, second)], clip)
    unfit = {each["column"]: each for each in report.unfit}
    assert unfit.keys() == {"price", "sold", "long"}
    assert unfit["price"] == {
        "column": "price",
        "holds": "numbers",
        "cells": 2,
        "path": f"{second}#second0",
        "value": "dear",
    }
    assert (unfit["sold"]["holds"], unfit["sold"]["cells"], unfit["sold"]["value"]) == ("true or false", 1, "5")
    assert (unfit["long"]["holds"], unfit["long"]["cells"], unfit["long"]["value"]) == ("whole numbers", 1, "0.5")
    rows = _rows(run, "price", "sold", "long", "word")[1:]
    assert [row["price"] for row in rows] == [None, 2, None]
    assert [row["sold"] for row in rows] == [None, True, False]
    assert [row["long"] for row in rows] == [None, 2, 1]
    assert [row["word"] for row in rows] == ["1", "2", "3"]


def test_a_list_names_its_pictures(run, tmp_path: Path) -> None:
    write_scenes(tmp_path / "pictures", 3, captions=False)
    lines = [f"pictures/{index:03}.png,a scene" for index in range(3)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["image,caption", *lines, "pictures/none.png,nothing"]))
    assert run(listed) == (3, 0, 0, 0, 1)
    listed.write_text("\n".join(["image,caption", *lines[:2]]))
    assert run(listed) == (0, 0, 1, 2, 0)
    assert [row["caption"] for row in _rows(run, "caption")] == ["a scene"] * 2


class BlindInTheDark(CLIP):
    """Gives NaN for a black picture."""

    def encode_image(self, images: Tensor) -> Tensor:
        light = images.mean((1, 2, 3))[:, None]
        return super().encode_image(images) * (light / light)


def test_a_picture_whose_embedding_is_not_finite_is_skipped(run, clip: CLIP, tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "pictures", 3)
    Image.new("RGB", (16, 16)).save(paths[1])
    blind = BlindInTheDark.from_config(clip.config)
    report = index_pictures(run.database(), [open_pictures(str(tmp_path / "pictures"))], blind)
    assert report.added == 2
    assert report.skipped == [{"path": str(paths[1]), "reason": "its embedding is not finite (NaN)"}]
    assert [row["path"] for row in _rows(run)] == [str(paths[0]), str(paths[2])]


def test_emoji(shared: Path, run) -> None:
    source = shared / "data" / "emoji.parquet"
    opened = open_pictures(str(source), ("{label}",))
    first = next(iter(opened.candidates))
    assert opened.count > 10_000
    assert first.path.startswith(f"{os.path.abspath(source)}#")
    assert {"style", "group", "tags", "split"} <= first.columns.keys()
    assert first.caption == first.columns["label"]
