import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config

from codebrush.data.sources.captioned_images import open_source
from codebrush.errors import DataError, ImageError, UsageError

EMOJI = Path(__file__).parents[4] / "shared" / "data" / "emoji.parquet"


@pytest.fixture
def pets(tmp_path, picture) -> Path:
    """Six rows in Parquet, with a null, an empty list, and one picture that is damaged."""
    path = tmp_path / "pets.parquet"
    colours = ["red", "lime", "blue", "black", "white"]
    images = [{"bytes": picture(colour), "path": f"{colour}.png"} for colour in colours]
    table = {
        "image": [*images, {"bytes": b"damaged", "path": "odd.png"}],
        "label": ["cat", "dog", "cow", "cat", None, "dog"],
        "style": ["flat", "flat", "3d", "3d", "flat", "flat"],
        "tags": [["pet", "fur"], ["pet"], ["farm"], [], ["x"], ["pet"]],
        "legs": [4, 4, 4, 3, 0, 4],
        "split": ["train", "train", "train", "val", "val", "train"],
    }
    pq.write_table(pa.table(table), path)
    return path


def test_rows_in_order(pets):
    source = open_source(str(pets), captions=["a {style} animal"])
    assert len(source) == 6
    assert source.captions(2) == ["a 3d animal"]
    assert source.row(2) == {"label": "cow", "style": "3d", "tags": ["farm"], "legs": 4, "split": "train"}
    assert source.image(2).getpixel((0, 0)) == (0, 0, 255)
    assert source.image(2).size == (9, 7)
    assert source.name(2) == "blue.png"


def test_split_where_and_limit_combine(pets):
    def labels(**options):
        source = open_source(str(pets), captions=["{style}"], **options)
        return [source.row(index)["label"] for index in range(len(source))]

    assert labels(split="val") == ["cat", None]
    assert labels(where=["label is not null", "style = flat"]) == ["cat", "dog", "dog"]
    assert labels(split="train", where=["legs >= 4"], limit=2) == ["cat", "dog"]
    assert labels(where=["label in cat, cow", "tags != pet"]) == ["cow", "cat"]


def test_templates_are_filled_and_skipped_where_a_column_is_empty(pets):
    source = open_source(str(pets), captions=["{label}, {style} style", "tags: {tags}", "{legs} legs {{sic}}"])
    assert source.captions(0) == ["cat, flat style", "tags: pet, fur", "4 legs {sic}"]
    assert source.captions(3) == ["cat, 3d style", "3 legs {sic}"]
    assert source.captions(4) == ["tags: x", "0 legs {sic}"]


def test_group(pets):
    where = ["label is not null"]
    assert open_source(str(pets), captions=["{label}"], where=where, group="style").group(2) == "3d"
    assert open_source(str(pets), captions=["{label}", "{style}"], where=where).group(2) == "cow"


def test_an_empty_group_is_none(pets):
    """Rows whose cell is empty share a group only if they share a caption."""
    source = open_source(str(pets), captions=["{label}", "{style} style"], group="label")
    assert [source.group(row) for row in (0, 4)] == ["cat", "flat style"]
    assert [source.group_cell(row) for row in (0, 4)] == ["cat", ""]
    assert open_source(str(pets), captions=["{style}"], group="tags").group(3) == "3d"
    assert open_source(str(pets), captions=["{style}"], group="legs").group(4) == "0"


def test_caption_column_is_found_and_a_list_is_several_captions(tmp_path, picture):
    images = [{"bytes": picture(), "path": None}] * 2
    table = {"image": images, "captions": [["one", "", "two"], ["three"]], "title": ["x", "y"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert source.captions(0) == ["one", "two"]
    assert source.name(1) == f"row 1 of {tmp_path / 'a.parquet'}"
    joined = open_source(tmp_path / "a.parquet", captions=["{captions}"])
    assert joined.captions(0) == ["one, two"]


def test_unreadable_picture_is_named(pets):
    source = open_source(str(pets), captions=["{style}"])
    with pytest.raises(ImageError, match=r"^odd\.png: not a picture"):
        source.image(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no caption column; give a template.*label, style, tags, legs, split"),
        ({"captions": ["{labl}"]}, "{labl}.* needs the column labl; there are label, style"),
        ({"captions": ["{label.x}"]}, "needs the column label.x"),
        ({"captions": ["{label"]}, "cannot read the caption template"),
        ({"captions": ["{label!r}"]}, "only hold names of columns|name columns only"),
        ({"captions": ["{}"]}, "only hold names of columns|name columns only"),
        ({"captions": ["{style}"], "where": ["lgs > 3"]}, '"lgs > 3" needs the column lgs; there are label'),
        ({"captions": ["{style}"], "where": ["legs ~ 3"]}, "cannot read the condition"),
        ({"captions": ["{style}"], "where": ["legs > 9"]}, 'no row is left by the condition "legs > 9"'),
        ({"captions": ["{style}"], "split": "test"}, "no split test; there are train, val"),
        ({"captions": ["{style}"], "group": "kind"}, "the group needs the column kind"),
        ({"captions": ["{style}"], "image_column": "photo"}, "no column photo"),
        ({"captions": ["{label}"], "strict": True}, r"white\.png: no caption, so it is left out"),
        ({"captions": ["{label}"], "where": ["label is null"]}, "none of the 1 pictures has a caption: put a text"),
        ({"captions": ["{label}", "{tags}"], "split": "val"}, None),
    ],
)
def test_what_is_missing_is_named(pets, options, message):
    if message is None:
        assert len(open_source(str(pets), **options)) == 2
        return
    with pytest.raises(DataError, match=message) as caught:
        open_source(str(pets), **options)
    assert "\n" not in str(caught.value)


def test_limit_below_one_is_a_usage_error(pets):
    with pytest.raises(UsageError, match="1 or more"):
        open_source(str(pets), captions=["{style}"], limit=0)


def test_only_the_split_train_needs_no_column(tmp_path, picture):
    pq.write_table(pa.table({"image": [picture()], "text": ["a"]}), tmp_path / "a.parquet")
    assert len(open_source(tmp_path / "a.parquet", split="train")) == 1
    with pytest.raises(DataError, match="has no splits, so there is no val"):
        open_source(tmp_path / "a.parquet", split="val")


def test_fingerprint_follows_content_only(pets, tmp_path, picture):
    def fingerprint(path=pets, **options):
        return open_source(path, captions=["{style}"], **options).fingerprint

    original = fingerprint()
    assert original == fingerprint()
    assert original == open_source(pets, captions=["{legs}"]).fingerprint, "a template changes no row"
    assert original != fingerprint(split="train")
    assert fingerprint(split="train") == fingerprint(where=["split = train"])
    copy = tmp_path / "elsewhere.parquet"
    copy.write_bytes(pets.read_bytes())
    assert original == fingerprint(copy)
    rows = pq.read_table(pets).to_pylist()
    rows[1]["image"]["bytes"] = picture("#00fe00")
    pq.write_table(pa.Table.from_pylist(rows), copy)
    assert original != fingerprint(copy)


def test_fingerprint_sees_a_change_within_a_long_file(folder):
    data = bytearray(os.urandom(300_000))

    def fingerprint():
        (folder / "a.png").write_bytes(data)
        return open_source(folder, captions=["x"]).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    for place in (10, 150_010, 299_990):
        data[place] ^= 1
        assert first != fingerprint()
        data[place] ^= 1
    data.append(0)
    assert first != fingerprint()


def test_unwritable_cache_is_one_line_and_nothing_else_is_said(pets, tmp_path, monkeypatch, capfd):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", in_the_way / "cache")
    with pytest.raises(DataError, match="set HF_DATASETS_CACHE to a writable folder") as caught:
        open_source(pets, captions=["{style}"])
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(open_source(pets, captions=["{style}"])) == 6
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not EMOJI.is_file(), reason="the emoji set is not here")
def test_emoji_set_opens_within_seconds():
    started = time.process_time()
    source = open_source(
        EMOJI,
        split="train",
        where=["skin_tone is null", "style in noto, fluent-flat"],
        captions=["{label}", "{label}, {style} style", "{tags}"],
        group="concept",
    )
    assert time.process_time() - started < 10  # about one second on most machines
    assert len(source) > 2000
    assert {source.row(index)["style"] for index in range(0, len(source), 50)} == {"noto", "fluent-flat"}
    assert source.image(0).size == (128, 128)
