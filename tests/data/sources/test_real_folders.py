"""Kinds of folders, tables and shards that people really have: each is read right, and what is not read is told."""

import importlib.machinery
import importlib.util
import io
import json
import os
import sys
import tarfile
import types
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_sources import captions

from codebrush.data.decoding import picture_formats
from codebrush.data.sources import folder_files, folder_reader, shard_reader, unread
from codebrush.data.sources.captioned_images import CaptionedImages, open_source
from codebrush.errors import DataError

ROWS = [{"file_name": f"{number}.png", "text": f"thing {number}"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
THINGS = ["thing 0", "thing 1", "thing 2"]


def opened(source: str | Path) -> CaptionedImages:
    """A source with the rows that have no caption; what is told of it is in its `unread`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_source(source, require_captions=False)


def write_shard(path: Path, files: dict[str | bytes, bytes]) -> Path:
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(os.fsdecode(name))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected", "named"),
    [
        ("metadata.jsonl", "\ufeff" + LINES, THINGS, []),
        ("metadata.jsonl", LINES + '{"file_name": "2.p', THINGS, ["metadata.jsonl, line 4: not JSON"]),
        ("metadata.jsonl", LINES + '{"file_name": null, "text": "x"}', THINGS, ["1 row has no file name"]),
        ("metadata.jsonl", LINES + "[1]\nnull\n", THINGS, ["line 4: not a JSON object", "line 5: not a JSON object"]),
        ("captions.jsonl", LINES, THINGS, []),
        ("Metadata.JSONL", LINES, THINGS, []),
        ("labels.csv", "file_name,text\n0.png,a\n", ["a", "", ""], []),
        ("Captions.TSV", "Image\tCaption\n1.png\tb\n", ["b", "", ""], []),
        ("captions.csv", "file_name,caption\nother.png,a\n", ["", "", ""], []),  # of no picture here: counted
        ("metadata.csv", "day,caption\n1,a\n", ["", "", ""], ["no column file_name; there are day, caption"]),
        ("metadata.csv", "name,caption\n0.png,a\n", ["a", "", ""], []),
    ],
)
def test_tables_among_pictures(
    folder: Path, picture, name: str, content: str, expected: list[str], named: list[str]
) -> None:
    for row in ROWS:
        (folder / row["file_name"]).write_bytes(picture())
    (folder / name).write_text(content, encoding="utf-8")
    source = opened(folder)
    assert captions(source) == expected
    assert len(source.unread.named) == len(named)
    for (item, reason), end in zip(source.unread.named, named, strict=True):
        assert f"{item}: {reason}".endswith(end)
    assert dict(source.unread.counted) == ({".csv file": 1} if name == "captions.csv" else {})


@pytest.mark.parametrize("content", [b"day,caption\n1,a\n", b"file_name,text\n", b"\xff\xfeh"])
def test_captions_beside_pictures_count_if_the_table_says_nothing_of_them(
    folder: Path, picture, content: bytes
) -> None:
    (folder / "0.png").write_bytes(picture())
    (folder / "0.txt").write_text("a thing")
    (folder / "metadata.csv").write_bytes(content)
    source = opened(folder)
    assert captions(source) == ["a thing"]
    ((item, _),) = source.unread.named
    assert item.endswith("pets/metadata.csv")


def test_a_table_may_write_accents_in_another_form(folder: Path, picture) -> None:
    one, other = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))
    (folder / other).write_bytes(picture("blue"))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": one, "text": "a thing"}))
    source = opened(folder)
    assert captions(source) == ["a thing"]
    assert source.image(0).getpixel((0, 0)) == (0, 0, 255)
    (folder / "metadata.jsonl").rename(folder / "list.jsonl")
    source = opened(folder / "list.jsonl")  # and so may a list
    assert source.image(0).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    "name", ["x::y", "hf:x", "set [1]", "{a}", "50% off", "#1", "__p", ".h", "it's", "a?b", "a*b", "~x", "~", "-x", " "]
)
def test_folders_may_have_any_name(tmp_path: Path, picture, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "p.png").write_bytes(picture())
    (folder / "list.csv").write_text("file_name,caption\np.png,a thing\n")
    monkeypatch.chdir(tmp_path)
    for source in (f"./{name}", f"./{name}/list.csv"):
        rows = opened(source)
        assert captions(rows) == ["a thing"]
        assert rows.image(0).size == (9, 7)


def test_half_a_character_costs_nothing(tmp_path: Path, folder: Path, picture) -> None:
    half, fine = rb'{"file_name": "0.png", "caption": "cut \ud83d"}', b'{"file_name": "1.png", "caption": "fine"}'
    for number in range(2):
        (folder / f"{number}.png").write_bytes(picture())
    (folder / "metadata.jsonl").write_bytes(half + b"\n" + fine)
    shard = {"0.png": picture(), "0.json": half, "1.png": picture(), "1.json": fine}
    for source in (folder, folder / "metadata.jsonl", write_shard(tmp_path / "s.tar", {**shard})):
        assert captions(opened(source)) == ["cut \ufffd", "fine"]


def test_names_in_a_shard_need_not_be_utf8(tmp_path: Path, picture) -> None:
    files: dict[str | bytes, bytes] = {}
    for name, text in ((b"good", b"one"), (b"caf\xe9", b"two")):
        files |= {name + b".png": picture(), name + b".txt": text}
    source = opened(write_shard(tmp_path / "s.tar", files))
    assert captions(source) == ["one", "two"]
    assert source.name(1) == "caf\\xe9"


@pytest.mark.parametrize(
    ("files", "expected", "counted"),
    [
        (("plain", "trip 22.05", "v 1.0 final"), ["plain", "trip 22.05", "v 1.0 final"], {}),
        (("0.input.png", "0.outputs.txt"), ["0.outputs.txt"], {}),
        (("0.img", "0.cap", "1.img", "1.cap"), ["0.cap", "1.cap"], {}),
        (("0.image.png", "0.txt"), ["0.txt"], {}),
        (("0.a.png", "0.a.txt", "0.b.png", "0.b.txt"), ["0.a.txt", "0.b.txt"], {}),
        (("0.jpg", "0.png", "0.txt"), ["0.txt", "0.txt"], {}),
        (("0.png", "0.txt", "0.depth.npy", "0.mask"), ["0.txt"], {".npy": 1, ".mask": 1}),
        (("0.a.png", "0.b.png", "0.txt", "0.npy"), ["0.txt", "0.txt"], {".npy": 1}),
    ],
)
def test_fields_of_shards(
    tmp_path: Path, picture, files: tuple[str, ...], expected: list[str], counted: dict[str, int]
) -> None:
    names = files if "." in files[0] else [name + end for name in files for end in (".png", ".txt")]
    is_text = (".txt", ".cap")
    contents = {
        name: (name if "." in files[0] else name.removesuffix(".txt")).encode() if name.endswith(is_text) else picture()
        for name in names
    }
    source = opened(write_shard(tmp_path / "s.tar", {**contents}))
    assert captions(source) == expected
    assert dict(source.unread.counted) == {f"member of the kind {ending}": count for ending, count in counted.items()}


def test_a_kind_for_which_a_package_is_missing_is_counted_with_the_remedy(
    tmp_path: Path, folder: Path, picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of formats is made anew as it is without the packages for photos."""
    bare = types.ModuleType("without_photos")
    monkeypatch.setitem(sys.modules, "without_photos", bare)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        importlib.machinery.SourceFileLoader("without_photos", str(picture_formats.__file__)).exec_module(bare)
    for module, names in {
        folder_reader: ("EXTENSIONS", "is_picture_file", "kind_of_file", "remedies"),
        folder_files: ("EXTENSIONS",),
        shard_reader: ("readable_format",),
        picture_formats: ("remedies",),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(bare, name))
    monkeypatch.setattr(shard_reader, "PICTURES", frozenset(("png", "jpg")))
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
    for name, data in (("b.heic", heic), ("c.HEIC", heic), ("photo", heic), ("d.dng", b"?"), ("e.mp4", b"?")):
        (folder / name).write_bytes(data)
    files = "2 HEIC files (.heic), 1 HEIC file without an ending, 1 camera RAW file (.dng) and 1 video file (.mp4)"
    remedy = (
        'for HEIC and camera RAW: pip install "codebrush[photos]"; for video: save the frames that count as pictures, '
    )
    remedy += "for instance with ffmpeg"
    with pytest.raises(DataError) as caught:
        open_source(folder)
    assert str(caught.value) == f"{folder}: no picture in this folder; there are {files}; {remedy}"
    (folder / "a.png").write_bytes(picture())
    assert opened(folder).unread.lines == [f"{folder}: {files} were not read; {remedy}"]
    shard = write_shard(tmp_path / "s.tar", {"0.png": picture(), "0.txt": b"a", "1.heic": heic, "1.txt": b"b"})
    lines = opened(shard).unread.lines
    assert lines == [f'{shard}: 1 member of the kind .heic was not read; for HEIC: pip install "codebrush[photos]"']


def test_samples_of_a_shard_may_have_their_captions_in_different_places(tmp_path: Path, picture) -> None:
    texts: dict[str | bytes, bytes] = {
        "0.txt": b"a",
        "1.json": b'{"caption": "b"}',
        "2.caption": b"c",
        "3.json": b'{"n": 1}',
        "3.txt": b"d",
        "5.json": b'{"caption": "e"}',
        "5.txt": b"not this one",
    }
    files: dict[str | bytes, bytes] = {}
    for number in range(6):
        own = {name: data for name, data in texts.items() if str(name).startswith(str(number))}
        files |= {f"{number}.png": picture(), **own}
    assert captions(opened(write_shard(tmp_path / "a.tar", files))) == ["a", "b", "c", "d", "", "e"]
    files["1.json"] = b'{"caption": ["b", "bee"]}'
    assert captions(opened(write_shard(tmp_path / "b.tar", files))) == ["a", "b | bee", "c", "d", "", "e"]


def test_shards_beside_tables_of_addresses(folder: Path, picture) -> None:
    """As img2dataset writes them."""
    write_shard(folder / "00000.tar", {"0.png": picture(), "0.txt": b"a thing"})
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["other"]}), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"reads the 1 \.tar files in it, but not 1 of another kind \(00000.parquet\)"):
        source = open_source(folder)
    assert captions(source) == ["a thing"]
    assert source.unread.counted == {".json file": 1}


@pytest.mark.parametrize("broken", [b"", b"<html>not found</html>", b"half", b"header"])
def test_one_damaged_shard_costs_itself(folder: Path, picture, broken: bytes) -> None:
    for number in range(3):
        files = {f"{number}{each}.png": picture() for each in range(4)}
        write_shard(folder / f"{number}.tar", {**files, f"{number}3.txt": b"last"})
    whole = (folder / "2.tar").read_bytes()
    damaged = {b"half": whole[:2560], b"header": whole[:2048] + bytes(range(256)) * 2 + whole[2560:]}
    (folder / "2.tar").write_bytes(damaged.get(broken, broken))
    source = opened(folder)
    assert [source.name(index) for index in range(8)] == [f"{number}{each}" for number in (0, 1) for each in range(4)]
    ((item, reason),) = source.unread.named
    assert item == str(folder / "2.tar")
    kept = 2 if broken in damaged else 0  # members of 1,024 bytes each
    assert len(source) == 8 + kept
    assert reason == ("cut off or damaged after 2 whole samples" if kept else "not a whole tar file")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a cat", ["b", "c"], "d"], ["a cat", "b | c", "d"]),
        (["a cat", 7, "d"], ["a cat", "7", "d"]),
        (["a cat", None, ["d"]], ["a cat", "", "d"]),
        (["a cat", {"en": "b"}, "d"], ["a cat", '{"en": "b"}', "d"]),
    ],
)
def test_one_odd_caption_changes_no_other(tmp_path: Path, picture, cells: list[Any], expected: list[str]) -> None:
    rows = [{"file_name": f"{number}.png", "caption": cell} for number, cell in enumerate(cells)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions(opened(tmp_path / "list.jsonl")) == expected
    shard: dict[str | bytes, bytes] = {}
    for number, row in enumerate(rows):
        shard |= {f"{number}.png": picture(), f"{number}.json": json.dumps(row).encode()}
    assert captions(opened(write_shard(tmp_path / "s.tar", shard))) == expected


def test_a_caption_file_in_another_encoding_costs_its_caption(folder: Path, picture) -> None:
    texts = {
        "0": b"good",
        "1": "caf\u00e9".encode("cp1252"),
        "2": "caf\u00e9".encode("utf-16"),
        "3": b"\x83\x8f\x83\x93",
    }
    for name, text in texts.items():
        (folder / f"{name}.png").write_bytes(picture())
        (folder / f"{name}.txt").write_bytes(text)
    source = opened(folder)
    assert captions(source) == ["good", "", "caf\u00e9", ""]
    reason = "not UTF-8 text; save it as UTF-8"
    assert source.unread.named == [(str(folder / f"{name}.txt"), reason) for name in "13"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tab.csv", "filepath\ttitle\n1.png\ta thing\n"),
        ("tab.tsv", "filepath\ttitle\n1.png\ta thing\n"),
        ("semi.csv", "file_name;caption\n1.png;a thing\n"),
        ("blank.csv", "file_name, caption\n1.png, a thing\n"),
        ("caps.csv", "Image,Caption\n1.png,a thing\n"),
        ("pipe.CSV", "IMG|Text\n1.png|a thing\n"),
    ],
)
def test_separators_and_names_of_columns(tmp_path: Path, picture, name: str, content: str) -> None:
    (tmp_path / "1.png").write_bytes(picture())
    (tmp_path / name).write_text(content)
    source = opened(tmp_path / name)
    assert captions(source) == ["a thing"]
    assert source.image(0).size == (9, 7)


def test_a_table_may_name_pictures_by_whole_paths_or_without_endings(folder: Path, picture) -> None:
    (folder / "sub").mkdir()
    for name in ("001.png", "sub/002.jpg", "3.png", "3.jpg"):
        (folder / name).write_bytes(picture())
    rows = ["001,one", f"{folder}/sub/002.jpg,two", "sub/002,too", "3,which?", "file,words"]
    (folder / "list.csv").write_text("\n".join(["file,caption", *rows]))
    source = opened(folder)
    found = [(source.name(index), source.captions(index)) for index in range(len(source))]
    assert found == [
        ("001.png", ["one"]),
        ("sub/002.jpg", ["two"]),
        ("sub/002.jpg", ["too"]),
        ("3", ["which?"]),  # of two pictures: named when it is not found
        ("file", ["words"]),
        ("3.jpg", []),
        ("3.png", []),
    ]


def test_parquet_files_may_have_other_columns_or_no_rows(folder: Path, picture) -> None:
    tables = {
        "a": {"image": [picture()], "text": ["one"]},
        "b": {"image": [picture("blue")], "text": ["two"], "n": [7]},
        "c": {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    source = opened(folder)
    assert captions(source) == ["one", "two"]
    assert [source.row(index)["n"] for index in range(2)] == [None, 7]
    assert source.image(1).getpixel((0, 0)) == (0, 0, 255)
    assert source.unread.named == [(str(folder / "c.parquet"), "it has no rows")]
    with pytest.raises(DataError, match=r"c\.parquet: it has no rows"):
        open_source(folder / "c.parquet")


def test_counts_of_several_things() -> None:
    assert unread.amount("linked folder that is read already", 3) == "3 linked folders that are read already"
    assert unread.amount("HEIC file (.heic)", 1200) == "1,200 HEIC files (.heic)"


def test_files_of_other_kinds_are_counted_with_what_to_do(folder: Path, picture) -> None:
    (folder / "a.png").write_bytes(picture())
    for name in ("a.mov", "b.pdf", "Artikel.xlsx", "c.svg", "d.eps", "index.html"):
        (folder / name).write_bytes(b"?")
    (line,) = opened(folder).unread.lines
    assert line.split(" were not read; ")[1].split("; ") == [
        "for video: save the frames that count as pictures, for instance with ffmpeg",
        "for SVG and PostScript: export it as PNG",
        "for PDF: export its pages as PNG",
        'for spreadsheet: save its table as "CSV UTF-8"',
    ]


def test_no_reason_hides_behind_many_of_another() -> None:
    gone = [(f"{number}.png", "no such file or directory") for number in range(25)]
    wide = [(f"line {number}", f"{number} cells under a header of 2") for number in range(3, 9)]
    assert unread.first_of_each_reason([*gone, ("bad.png", "no picture"), *wide]) == [
        *(f"{number}.png: no such file or directory" for number in range(5)),
        "20 more like the last: no such file or directory",
        "bad.png: no picture",
        *(f"line {number}: {number} cells under a header of 2" for number in range(3, 8)),
        "1 more like the last: 7 cells under a header of 2",
    ]
    lines = unread.first_of_each_reason([(f"{letter}.png", f"reason {letter}") for letter in "abcdefghijkl"])
    assert lines[9:] == ["j.png: reason j", "2 more for other reasons; --json lists all"]
