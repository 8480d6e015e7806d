"""Captions in the files beside pictures, whatever the tool that wrote them."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from codebrush.data.sources.caption_files import CaptionFiles, captions_beside, read_captions
from codebrush.data.sources.delimited import Record
from codebrush.data.sources.metadata import tables_about
from codebrush.data.sources.picture_names import PictureNames
from codebrush.data.sources.rows import load_rows
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError


@pytest.mark.parametrize(
    "name",
    [
        "1.txt",
        "1.TXT",
        "1.Caption",
        "1.caption",
        "1.captions",
        "1.cap",
        "1.text",
        "1.png.txt",
        "1.png.caption",
        "1.json",
        "1.png.json",
    ],
)
def test_a_caption_file_may_have_any_usual_name(tmp_path: Path, name: str):
    (tmp_path / name).write_text('{"caption": "a thing"}' if name.endswith("json") else "a thing\n")
    assert CaptionFiles([name, "2.txt"]).beside("1.png") == name
    assert captions_beside(tmp_path / "1.png", Unread("x")) == ["a thing"]
    assert captions_beside(tmp_path / "2.png", Unread("x")) == []


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("IMG_1.JPG.supplemental-metadata.json", "IMG_1.JPG"),
        ("IMG_1.JPG.supplemental-me.json", "IMG_1.JPG"),
        ("IMG_1.JPG.s.json", "IMG_1.JPG"),
        ("IMG_1.JPG.supplemental-metadata(2).json", "IMG_1(2).JPG"),
    ],
)
def test_google_takeout(tmp_path: Path, name: str, picture: str) -> None:
    (tmp_path / name).write_text('{"title": "IMG_1.JPG", "description": "a beach", "url": "https://x"}')
    files = CaptionFiles([name])
    assert files.beside(picture) == name
    assert files.beside("IMG_1(7).JPG") is None
    assert captions_beside(tmp_path / picture, Unread("x")) == ["a beach"]
    assert captions_beside(tmp_path / "IMG_1(7).JPG", Unread("x")) == []
    assert CaptionFiles([name, "IMG_1.JPG.json", "IMG_1(2).txt"]).beside(picture) != name


def test_the_most_usual_of_several_is_read():
    files = CaptionFiles(["a/1.json", "a/1.caption", "a/1.txt", "a/1.png.txt", "b/1.txt"])
    assert files.beside("a/1.png") == "a/1.txt"
    assert files.beside("1.png") is None


def test_accents_may_be_written_in_either_form(tmp_path: Path):
    one, other = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert CaptionFiles([f"{one}.txt"]).beside(f"{other}.png") == f"{one}.txt"
    assert CaptionFiles([f"{other}.txt"]).beside(f"{one}.png") == f"{other}.txt"
    (tmp_path / f"{one}.txt").write_text("a thing")
    assert captions_beside(tmp_path / f"{other}.png", Unread("x")) == ["a thing"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\ufeffone\n two \r\nthree\rfour\n\n", ["one", "two", "three", "four"]),
        ("one\u2028caption", ["one\u2028caption"]),
        ("one\x85caption\x0b\x0c\x1c\x1d\x1e.", ["one\x85caption\x0b\x0c\x1c\x1d\x1e."]),
        ("caf\u00e9".encode("utf-16"), ["caf\u00e9"]),
        ("", []),
    ],
)
def test_only_line_ends_end_a_caption(tmp_path: Path, content: str | bytes, expected: list[str]):
    path = tmp_path / "1.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert read_captions(path) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('"a thing"', ["a thing"]),
        ('["a", "b", ""]', ["a", "b"]),
        ('{"Caption": ["a", "b"], "caption_length": 2}', ["a", "b"]),
        ('[{"caption": "a"}, "b", {"text": ["c", "d"]}]', ["a", "b", "c, d"]),
        ('{"text": "cut \\ud83d"}', ["cut \ufffd"]),
        ('{"caption": null}', []),
    ],
)
def test_json(tmp_path: Path, content: str, expected: list[str]):
    (tmp_path / "1.json").write_text(content)
    assert read_captions(tmp_path / "1.json") == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.txt", "caf\u00e9".encode("cp1252"), "not UTF-8 text"),
        ("1.txt", "\u732b".encode("shift_jis"), "not UTF-8 text"),
        ("1.json", b"a thing", "not JSON"),
        ("1.json", b'{"width": 3}', "no caption in it; its keys are width"),
        ("1.json", b"[" * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_captions(tmp_path / name)
    unread = Unread("x")
    assert captions_beside(tmp_path / "1.png", unread) == []
    ((item, said),) = unread.named
    assert item == str(tmp_path / name)
    assert said.startswith(reason)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "1.txt")
    with pytest.raises(ValueError, match="not a file"):
        read_captions(tmp_path / "1.txt")
    assert captions_beside(tmp_path / "1.png", Unread("x")) == []


def test_tables_of_other_things_are_looked_at_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is loaded whole; those that cannot be read are named, the others counted."""
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    (tmp_path / "captions.csv").write_text("file,text\nelsewhere.png,no\n2.png,a thing\n" + "x.png,y\n" * 1000)
    (tmp_path / "prices.csv").write_text("day,price\n1,2\n" + "1,2\n" * 1000)
    (tmp_path / "other.jsonl").write_text('{"image": "else.png"}\n[]\n')
    (tmp_path / "late.tsv").write_text("image\ttext\n" + "else.png\tno\n" * 5)
    (tmp_path / "latin.csv").write_bytes(b"file_name,text\n1.png,caf\xe9\n")
    (tmp_path / "log.jsonl").write_text("no json\nnone\n")
    (tmp_path / "wide.csv").write_bytes(b"\xff\xfef\x00i\x00l\x00e\x00\n")
    taken: list[int] = []
    monkeypatch.setattr("codebrush.data.sources.metadata.MOST_ROWS", 5)
    monkeypatch.setattr(
        "codebrush.data.sources.delimited.Record",
        lambda *given, **named: taken.append(given[0]) or Record(*given, **named),
    )
    unread = Unread("here")
    tables = sorted(each.name for each in tmp_path.iterdir() if each.suffix != ".png")
    found, broken = tables_about("here", tmp_path, tables, PictureNames(tmp_path, ["2.png"]), unread)
    assert found == ["captions.csv"]
    assert broken == ["latin.csv", "log.jsonl", "wide.csv"]
    named = dict(unread.named)
    assert named["here/latin.csv"] == 'not UTF-8 text; save it as UTF-8 (Excel: "CSV UTF-8")'
    assert named["here/log.jsonl"] == "not JSON"
    assert named["here/wide.csv"] == "not UTF-8 or UTF-16 text"
    assert unread.notes == ["late.tsv names no picture of this folder in its first 5 rows"]
    assert sorted(taken) == [2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6], (
        "the rows of captions.csv, latin.csv, late.tsv and prices.csv as far as needed"
    )
    monkeypatch.undo()
    rows = load_rows(str(tmp_path))
    assert dict(zip(rows.text["file_name"].to_pylist(), rows.text["text"].to_pylist(), strict=True)) == {
        "elsewhere.png": "no",
        "2.png": "a thing",
        "x.png": "y",
        "1.png": None,
    }
    with pytest.raises(DataError, match=r"latin\.csv: not UTF-8 text"):
        load_rows(str(tmp_path), strict=True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"description": " ", "title": "a thing"}, ["a thing"]),  # of a picture that was downloaded without a text
        ({"caption": None, "text": "a thing"}, ["a thing"]),
        ({"caption": [], "prompt": ["a", "b"]}, ["a", "b"]),
        ({"caption": "", "text": float("nan")}, []),
    ],
)
def test_the_first_key_with_a_caption_counts(tmp_path: Path, content: dict[str, object], expected: list[str]):
    (tmp_path / "1.json").write_text(json.dumps(content))
    assert read_captions(tmp_path / "1.json") == expected


@pytest.mark.parametrize("text", ["0 0.5 0.5 0.1 0.25\n12 .2 1.0 0.1 1e-05\n", "3 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n"])
def test_boxes_of_objects_are_no_captions(tmp_path: Path, text: str):
    (tmp_path / "1.txt").write_text(text.replace("1e-05", "1.5e-05"))
    with pytest.raises(ValueError, match="boxes or outlines of objects"):
        read_captions(tmp_path / "1.txt")
    (tmp_path / "1.txt").write_text(text + "10 0.5 inch nails\n")
    assert len(read_captions(tmp_path / "1.txt")) == text.count("\n") + 1


@pytest.mark.parametrize("content", [b"a\0b", "a thing".encode("utf-16-le")])
def test_a_text_with_zeros_is_none(tmp_path: Path, content: bytes):
    (tmp_path / "1.txt").write_bytes(content)
    with pytest.raises(ValueError, match="not UTF-8 text; save it as UTF-8"):
        read_captions(tmp_path / "1.txt")


def test_a_table_may_name_pictures_in_other_capitals_and_by_paths_of_another_place(tmp_path: Path):
    names = ["1.png", "2.png", "cats/3.png", "cats/5.png", "dogs/5.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = {
        "1.PNG": "1",
        r"C:\data\pets\2.png": "2",
        "/mnt/pets/cats/3.png": "3",
        "/mnt/a/5.png": "no one of two",
        str(tmp_path / "dogs/5.png"): "dog",
        r"\\nas\pets\CATS\5.png": "cat",
    }
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = load_rows(str(tmp_path))
    texts = dict(zip(found.text["file_name"].to_pylist(), found.text["text"].to_pylist(), strict=True))
    right = dict(zip(names, ["1", "2", "3", "cat", "dog"], strict=True))
    assert texts == right | {"/mnt/a/5.png": "no one of two"}
    assert found.unread.notes == [
        "metadata.jsonl has whole paths of another place; C:/data/pets/2.png is read as 2.png, and others so"
    ]


def test_paths_of_another_place_that_could_mean_one_picture_mean_none(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    lines = [json.dumps({"file_name": f"/mnt/{place}/1.png", "text": place}) for place in ("cats", "dogs")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = load_rows(str(tmp_path))
    assert found.text["file_name"].to_pylist() == ["/mnt/cats/1.png", "/mnt/dogs/1.png", "1.png"]
    assert found.unread.notes == []


def test_a_table_without_a_row_that_can_be_read_says_so(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text('[{"file_name": "1.png"}]')
    unread = load_rows(str(tmp_path)).unread
    assert [reason for _, reason in unread.named] == ["not a JSON object", "none of its rows can be read"]
