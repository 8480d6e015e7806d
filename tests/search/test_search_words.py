"""Words in every script are found in captions; unwanted texts; columns and conditions under the names users know."""

import csv
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lancedb.index import FTS
from PIL import Image

from codebrush.errors import DataError, UsageError
from codebrush.search.conditions import with_columns
from codebrush.search.database import Database, create_database, open_database
from codebrush.search.indexing import index_pictures
from codebrush.search.messages import plain_reason
from codebrush.search.pictures import open_pictures
from codebrush.search.queries import combine, search
from packs import micro_clip
from search_helpers import EMBEDDER, database_of, unit, write_scenes

CAPTIONS = [
    "一只红苹果放在桌上",
    "แมวสีส้มนั่งอยู่บนโต๊ะ",
    "赤いりんごがテーブルの上にある",
    "a red apple 🍎 on a table",
    "running dogs, café",
    "고양이가 탁자 위에 있다",
    "تفاحة حمراء على الطاولة",
    "pineapple cake",
    "👨‍👩‍👧 at home",
]
QUERIES = {
    "苹果": {0},
    "红": {0},
    "แมว": {1},
    "りんご": {2},
    "🍎": {3},
    "dog": {4},
    "cafe": {4},
    "apple": {3},
    "고양이": {5},
    "تفاحة": {6},
    "👨‍👩‍👧": {8},
    "苹果 dog": {0, 4},
    "pear": set(),
    "梨": set(),
}


def captioned(folder: Path) -> Database:
    vectors = unit(np.random.default_rng(0).normal(size=(len(CAPTIONS), 8)))
    return database_of(folder, vectors, CAPTIONS)


def found(database: Database, text: str, **options: object) -> set[int]:
    return {int(hit.path) for hit in search(database, None, text, mode="text", **options)}  # type: ignore[arg-type]


def test_words_of_every_script_are_found(tmp_path: Path) -> None:
    database = captioned(tmp_path / "db")
    assert {query: found(database, query) for query in QUERIES} == QUERIES
    assert found(database, "🍎 dog", without=["🍎"]) == {4}
    assert found(database, "🍎 고양이", where="size > 3") == {5}
    assert [hit.path for hit in search(database, None, "dog 🍎", mode="text")] == ["4", "3"], "the index's words first"
    hits = search(database, torch.eye(8)[0], "苹果", mode="hybrid")
    assert hits[0].score > 0


def test_parts_of_words_are_found_where_no_word_is(tmp_path: Path) -> None:
    captions = [
        "Segelboote am Abend",
        "ein Ruderboot",
        "das Boot",
        "Apfelkuchen",
        "Übergrößenkleid",
        "a steamboat",
        "it is",
    ]
    vectors = unit(np.array([[0.1, 1], [0.2, 1], [0.3, 1], [1, 0], [1, 0.1], [0.5, 1], [1, 0.2]]))
    database = database_of(tmp_path / "db", vectors, captions)
    assert found(database, "boot") == {2}, "a whole word comes before parts"
    assert found(database, "segel") == {0}
    assert found(database, "BOOTE") == {2}, "the index knows endings"
    assert found(database, "Kuchen oder Kleid") == {3, 4}
    assert found(database, "größen") == {4}
    assert found(database, "ruder segel", without=["abend"]) == {1}
    assert found(database, "ruder segel", where="size < 1") == {0}
    assert found(database, "am ea") == {0}, "only words of three letters or more are looked for inside others"
    assert found(database, "ea") == set()
    assert [hit.score for hit in search(database, None, "kuchen", mode="text")] == [0]
    query = torch.tensor([1.0, 0.0])
    hits = search(database, query, "segel", mode="hybrid", k=3)
    assert [hit.path for hit in hits] == ["0", "3", "4"]
    assert hits[0].score == pytest.approx(1 / 61 + 1 / 67)
    both = search(database, query, "ruder segel", mode="hybrid", k=2)
    assert [hit.path for hit in both] == ["1", "0"], "parts share a rank, so that the picture decides"


def test_an_index_of_words_between_blanks_is_made_anew(tmp_path: Path) -> None:
    database = captioned(tmp_path / "db")
    assert not database.update_words()
    table = lancedb.connect(tmp_path / "db", read_consistency_interval=timedelta(0)).open_table("pictures")
    table.create_index("caption", config=FTS(remove_stop_words=False), replace=True)
    old = open_database(tmp_path / "db", EMBEDDER)
    assert {int(hit.path) for hit in search(old, None, "dog", mode="text")} == {4}
    assert old.update_words()
    assert not old.update_words()
    assert {query: found(old, query) for query in QUERIES} == QUERIES


def test_an_unwanted_text_never_leads_the_search() -> None:
    red, flower, other = torch.eye(3)
    red_flower = F.normalize(red + flower, dim=0)
    with pytest.raises(UsageError, match="the query and the unwanted texts cancel out: leave one of them out"):
        combine(red, None, red[None])
    with pytest.raises(UsageError, match="cancel out"):
        combine(red, None, F.normalize(red + 0.1 * other, dim=0)[None])
    with pytest.raises(UsageError, match="cancel out"):
        combine(red_flower, None, torch.stack([red, flower]))
    query = combine(red_flower, None, red[None])
    assert query @ red == pytest.approx(0, abs=1e-6)
    assert query @ flower == pytest.approx(1)
    near = F.normalize(red + 0.5 * flower, dim=0)
    assert combine(near, None, red[None]) @ red <= 1e-6
    weak = combine(red, None, other[None])
    assert weak @ other == pytest.approx(-0.5 / 1.25**0.5)  # what they do not share is subtracted by half, as ever


def test_columns_that_would_become_one_keep_names_of_their_own(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "1.png")
    header = ["file_name", "caption", "a b", "a_b", "a-b", "Caption", "embedding", "Width", "size", "_id", "2024"]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, ["1.png", "a thing", "v1", "v2", "v3", "own", "mine", "big", "XL", "id7", "y"]]
        )
    source = open_pictures(str(tmp_path / "t.csv"))
    names = {"a b": "a_b_2", "a-b": "a_b_3", "Caption": "source_Caption", "embedding": "source_embedding"}
    assert source.renamed == names | {"Width": "source_Width", "size": "source_size", "_id": "id"}
    database = create_database(tmp_path / "db", EMBEDDER, micro_clip().embed_dim)
    report = index_pictures(database, [source], micro_clip())
    assert {each["column"]: each["as"] for each in report.renamed if each["new"]} == source.renamed
    again = index_pictures(database, [open_pictures(str(tmp_path / "t.csv"))], micro_clip())
    assert [each["new"] for each in again.renamed] == [False] * 7
    (hit,) = search(database, torch.eye(micro_clip().embed_dim)[0])
    expected = {"a_b": "v2", "a_b_2": "v1", "a_b_3": "v3", "source_Caption": "own", "source_embedding": "mine"}
    expected |= {"source_Width": "big", "source_size": "XL", "id": "id7", "2024": "y"}
    assert {name: hit.columns[name] for name in expected} == expected

    vector = torch.eye(micro_clip().embed_dim)[0]
    for where in (
        "a_b_2 = 'v1' AND \"a b\" = 'v1' AND \"a-b\" = 'v3' AND \"a-b_3\" = 'v3'",
        "`source_caption` = 'own' AND \"source_Caption\" = 'own' AND Caption = 'own' AND caption = 'a thing'",
        "Width = 'big' AND width = 20 AND WIDTH = 20 AND _id = 'id7' AND source_size = 'XL' AND size > 0",
        "`2024` = 'y' AND 2024 = 'y' AND 2024 IN ('y') AND size < 2024 AND 2024 IS NOT NULL AND NOT(2024 = 'n')",
    ):
        assert len(search(database, vector, where=where)) == 1, where
    assert search(database, vector, where="source_size = 'L'") == []
    with pytest.raises(UsageError, match=r"source_Width \(Width in its source\), .*id \(_id in its source\)"):
        search(database, vector, where="nope = 1")
    for where in ("nope = 1", "size = 'x'", "size =", "a b = 1"):
        with pytest.raises(UsageError) as caught:
            search(database, vector, where=where)
        line = str(caught.value)
        assert line.startswith(f'cannot read the condition "{where}" (')
        assert ".rs" not in line
        assert "/root" not in line
        assert "\n" not in line


def test_names_in_conditions() -> None:
    columns = ["caption", "Label", "a_b", "2024"]
    assert with_columns("a_b = 3 AND CAPTION = 'x'", columns) == "a_b = 3 AND `caption` = 'x'"
    assert with_columns("label = 'label' AND \"a b\" > 3 OR `Label` = 'it''s'", columns) == (
        "`Label` = 'label' AND `a_b` > 3 OR `Label` = 'it''s'"
    )
    sources = {"Width": ["source_Width"], "x y": ["a_b", "2024"], "gone": ["gone_2"], "And": ["a_b"]}
    with_sources = [*columns, "source_Width", "width"]
    assert with_columns("Width > width And length(Label) > 2024 AND gone = 2024.5", with_sources, sources) == (
        "`source_Width` > width And length(`Label`) > 2024 AND gone = 2024.5"
    )
    with pytest.raises(UsageError, match="the column x y is called a_b or 2024 here, by its source"):
        with_columns("`x y` = 1", columns, sources)
    assert with_columns("nothing = '`Label`' AND contains(caption, 'a b')", columns) == (
        "nothing = '`Label`' AND contains(caption, 'a b')"
    )


def test_messages_of_lancedb_are_made_plain() -> None:
    raw = (
        'lance error: LanceError(IO): Execution error: Received literal Utf8("x"), /root/.cargo/registry/src/index'
        ".crates.io-1949/lance-datafusion-13.0.0/src/logical_expr.rs:23:88"
    )
    assert plain_reason(raw) == 'Execution error: Received literal Utf8("x")'


def test_a_folder_that_was_renamed_is_not_embedded_again(tmp_path: Path) -> None:
    write_scenes(tmp_path / "old", 5)
    database = create_database(tmp_path / "db", EMBEDDER, micro_clip().embed_dim)
    assert index_pictures(database, [open_pictures(str(tmp_path / "old"))], micro_clip()).reused == 0
    columns = ["hash", "embedding", "width", "height", "thumbnail", "caption"]
    before = {row["hash"]: row for part in database.rows(columns) for row in part.to_pylist()}
    (tmp_path / "old").rename(tmp_path / "new")
    write_scenes(tmp_path / "new", 1, first=7)

    clip = micro_clip()
    encoded: list[int] = []
    encode = clip.encode_image
    clip.encode_image = lambda images: encoded.append(len(images)) or encode(images)  # type: ignore[method-assign]
    report = index_pictures(database, [open_pictures(str(tmp_path / "new"))], clip)
    assert (report.added, report.reused, sum(encoded)) == (6, 5, 1)
    where = f"starts_with(path, '{tmp_path / 'new'}')"
    after = {row["hash"]: row for part in database.rows(columns, where) for row in part.to_pylist()}
    assert {key: after[key] for key in before} == before
    assert len(after) == 6


def test_a_database_that_is_damaged_is_named_without_foreign_words(tmp_path: Path) -> None:
    captioned(tmp_path / "db")
    for file in (tmp_path / "db" / "pictures.lance" / "data").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        list(open_database(tmp_path / "db").rows(["path"]))
    assert ".rs" not in str(caught.value)
