"""Folders as people have them, made at random: what goes in is read, named or counted, and read right."""

import io
import json
import os
import random
import stat
import tarfile
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from codebrush.data.decoding.picture_formats import READS_HEIC, READS_RAW
from codebrush.data.sources.captioned_images import open_source
from photo_files import small_dng

DNG = Image.new("RGB", (64, 48), "red")
FOLDERS = 12  # in the fast suite
CAMPAIGN = 300  # in `make test-long`
WORDS: tuple[str, ...] = (
    "a cat",
    "one\u2028line",
    "caf\u00e9",
    '5" nails',
    "a, b; c",
    "\u732b",
    "x: y",
    '"quoted"',
    "a|b",
)
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
LITTER = {  # a file that is not read -> its content and how it is counted
    "notes.docx": (b"PK", ".docx file"),
    "clip.mp4": (b"\x00\x00\x00\x18ftypisom", "video file (.mp4)"),
    "film": (b"\x00\x00\x00\x18ftypisom", "video file without an ending"),
    "photo.jxl": (b"\xff\x0a", "JPEG XL file (.jxl)"),
    "drawing.svg": (b"<svg/>", "SVG file (.svg)"),
    "page.html": (b"<html>", "web page file (.html)"),
    "Thumbs.db": (b"", "file of the operating system"),
    ".hidden": (b"", "hidden file"),
    "alone.txt": (b"of no picture", ".txt file"),
    "list.json": (b'["a"]', ".json file"),
    "other.csv": (b"file_name,caption\nelsewhere.png,a\n", ".csv file"),
    "noending": (b"neither picture nor text", "file without an ending"),
    "model.safetensors": (b"", ".safetensors file"),
}
BINS = ("#recycle", "@eaDir", "$RECYCLE.BIN", "@Recycle", "lost+found", "__MACOSX")
SEPARATORS = {"comma": ",", "blank": ", ", "semicolon": ";", "tab": "\t", "bar": "|"}
HEADERS = (("file_name", "text"), ("Image", "Caption"), ("filepath", "title"), ("path", "prompt"))


def picture(rng: random.Random, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), tuple(rng.randrange(256) for _ in range(3))).save(file, kind)
    return file.getvalue()


def photo(rng: random.Random, ending: str) -> bytes:
    """The content of a picture file with this ending."""
    kinds = {".jpg": "JPEG", ".jpe": "JPEG", ".mpo": "MPO", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
    return picture(rng, kinds.get(ending, "PNG"))


@dataclass
class Made:
    """What a folder holds, and what must come out of it."""

    captions: dict[str, list[str]] = field(default_factory=dict)  # picture -> its captions
    counted: Counter[str] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)  # ends of the names of what cannot be read
    notes: int = 0


def fill(folder: Path, rng: random.Random) -> Made:
    """Pictures with captions of all kinds, among what is not read."""
    made = Made()
    places = ["", "sub/", "deep/er/"][: rng.randint(1, 3)]
    by_table = rng.random() < 0.4
    for number in range(rng.randint(2, 8)):
        place = rng.choice(places)
        (folder / place).mkdir(parents=True, exist_ok=True)
        stem = rng.choice([f"p{number}", f"trip 22.05 {number}", f"caf\u00e9{number}", f"\u732b{number}"])
        written = unicodedata.normalize(rng.choice(["NFC", "NFD"]), stem)
        ending = rng.choice([".png", ".PNG", ".jpg", ".jpe", ".mpo", ".webp", ".bmp", ".tif", ""])
        name = f"{place}{written}{ending}"
        (folder / name).write_bytes(photo(rng, ending))
        if by_table:
            made.captions[name] = []
            if rng.random() < 0.2:
                (folder / f"{name}.txt").write_text("not read beside a table")
                made.counted[".txt file"] += 1
        else:
            add_caption(folder, f"{place}{unicodedata.normalize('NFC', stem)}", name, rng, made)
    for name in rng.sample(sorted(LITTER), rng.randint(0, len(LITTER))):
        (folder / (place := rng.choice(places))).mkdir(parents=True, exist_ok=True)
        (folder / place / name).write_bytes(LITTER[name][0])
        made.counted[LITTER[name][1]] += 1
    if by_table:
        add_table(folder, rng, made)
    special = ("pipe", "socket", "link", "bin", "linked folder", "linked file", "odd name", "heic", "raw", "shard")
    for kind in rng.sample(special, rng.randint(0, len(special))):
        add_special(folder, kind, rng, made)
    return made


def add_caption(folder: Path, stem: str, picture: str, rng: random.Random, made: Made) -> None:
    texts = rng.sample(WORDS, rng.randint(1, 2))
    made.captions[picture] = texts
    kind = rng.choice(
        [".txt", ".TXT", ".caption", "whole", ".json", "list", "utf-16", "cp1252", "damaged json", "pipe", "none"]
    )
    if kind in (".txt", ".TXT", ".caption"):
        (folder / f"{stem}{kind}").write_text("\r\n".join(texts), encoding=rng.choice(["utf-8", "utf-8-sig"]))
    elif kind == "whole":
        (folder / f"{picture}.txt").write_text("\n".join(texts), encoding="utf-8")
    elif kind in (".json", "list"):
        (folder / f"{stem}.json").write_text(json.dumps({"caption": texts, "width": 4} if kind == ".json" else texts))
    elif kind == "utf-16":
        (folder / f"{stem}.txt").write_bytes("\n".join(texts).encode("utf-16"))
    else:
        made.captions[picture] = []
        if kind == "pipe":
            os.mkfifo(folder / f"{stem}.txt")
            made.counted["pipe"] += 1
        elif kind != "none":
            name, data = (f"{stem}.json", b"{") if kind == "damaged json" else (f"{stem}.txt", b"caf\xe9 and more")
            (folder / name).write_bytes(data)
            made.named.add(name)


def add_table(folder: Path, rng: random.Random, made: Made) -> None:
    """A table of captions under any name, with any separator, and some rows that cannot be read."""
    name = rng.choice(["metadata", "Metadata", "captions", "LABELS"]) + rng.choice(
        [".csv", ".CSV", ".tsv", ".jsonl", ".ndjson"]
    )
    separator = "\t" if name.endswith(".tsv") else SEPARATORS[rng.choice(sorted(SEPARATORS))]
    is_json, header = name.endswith(("jsonl", "ndjson")), rng.choice(HEADERS)
    rows: list[bytes] = [] if is_json else [separator.join(header).encode()]
    pictures = sorted(made.captions)
    described = {pictures[0], *rng.sample(pictures, rng.randint(1, len(pictures)))}  # one, so that it is about them
    for each in sorted(described):
        texts = rng.sample(WORDS, rng.randint(1, 2)) if is_json else [rng.choice(WORDS)]
        made.captions[each] = texts
        shown = unicodedata.normalize(rng.choice(["NFC", "NFD"]), each)
        if is_json:
            rows.append(json.dumps({header[0]: shown, header[1]: texts if len(texts) > 1 else texts[0]}).encode())
        else:
            rows.append(separator.join(cell(text, separator) for text in (shown, texts[0])).encode())
        bad = rng.choice(["none", "none", "too long", "not UTF-8"])
        if bad == "too long":
            rows.append(b'{"file_name": "x' if is_json else separator.join("abcd").encode())
        elif bad == "not UTF-8":
            rows.append(
                b'{"file_name": "caf\xe9"}'
                if is_json
                else separator.join(["x.png", "?"]).encode().replace(b"?", b"caf\xe9")
            )
        if bad != "none":
            made.named.add(f"{name}, line {len(rows)}")
    data = rng.choice([b"\n", b"\r\n", b"\r"]).join(rows) + rng.choice([b"", b"\n"])
    if not any("line" in end for end in made.named):
        data = data.decode().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    (folder / name).write_bytes(data)


def cell(text: str, separator: str) -> str:
    """A cell as programs write it: quoted where it must be."""
    is_quoted = text.startswith('"') and text.endswith('"')
    if is_quoted or (separator != "\t" and any(mark in text for mark in (separator.strip(), '"'))):
        return '"' + text.replace('"', '""') + '"'
    return text


def add_special(folder: Path, kind: str, rng: random.Random, made: Made) -> None:
    if kind == "pipe":
        os.mkfifo(folder / "pipe.png")
        made.counted["pipe"] += 1
    elif kind == "socket":
        os.mknod(folder / "socket.jpg", stat.S_IFSOCK | 0o600)
        made.counted["socket"] += 1
    elif kind == "link":
        (folder / "dead").symlink_to("/nowhere/at/all")
        made.counted["broken link"] += 1
    elif kind == "bin":
        name = rng.choice(BINS)
        (folder / name).mkdir()
        (folder / name / "old.png").write_bytes(picture(rng))
        made.counted[f"folder called {name}"] += 1
    elif kind == "odd name":
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(picture(rng))
        made.captions["caf\\xe9.png"] = []
    elif kind == "shard":
        shard(folder / "more.tar", rng)
        made.notes += 1
    elif kind in ("heic", "raw"):
        is_read = READS_HEIC if kind == "heic" else READS_RAW
        (folder / f"shot.{kind}".replace("raw", "dng")).write_bytes(HEIC if kind == "heic" else small_dng(DNG, 1))
        if is_read:
            made.captions[f"shot.{kind}".replace("raw", "dng")] = []
        else:
            made.counted["HEIC file (.heic)" if kind == "heic" else "camera RAW file (.dng)"] += 1
    else:
        store = folder.with_name(f"{folder.name}-{kind}")
        store.mkdir()
        (store / "far.png").write_bytes(picture(rng))
        made.captions["linked.png" if kind == "linked file" else "linked/far.png"] = []
        if kind == "linked file":
            (folder / "linked.png").symlink_to(store / "far.png")
        else:
            (folder / "linked").symlink_to(store)
            (folder / "linked again").symlink_to(store)
            made.counted["linked folder that is read already"] += 1


def check_folder(folder: Path, seed: int) -> None:
    made = fill(folder, random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(folder, require_captions=False)
    found = {source.name(index): source.captions(index) for index in range(len(source))}
    assert found == made.captions
    unread = source.unread
    assert {next(end for end in made.named if name.endswith(end)) for name, _ in unread.named} == made.named
    assert len(unread.named) == len(made.named)
    assert unread.counted == made.counted
    assert len(unread.notes) == made.notes + any(" line " in end for end in made.named)  # rows without a caption
    shots = {"shot.dng": (64, 48)}
    for index in range(len(source)):
        if (name := source.name(index)) != "shot.heic":  # is only its beginning
            assert source.image(index).size == shots.get(name, (4, 4))


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_a_folder_is_read_named_or_counted(tmp_path: Path, seed: int) -> None:
    (tmp_path / "pets").mkdir()
    check_folder(tmp_path / "pets", seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(FOLDERS, CAMPAIGN))
def test_hundreds_of_folders_are_read_named_or_counted(tmp_path: Path, seed: int) -> None:
    (tmp_path / "pets").mkdir()
    check_folder(tmp_path / "pets", seed)


@dataclass
class Sample:
    """What must come out of a sample of a shard."""

    captions: list[str]
    named: str = ""
    counted: str = ""


def shard(path: Path, rng: random.Random) -> tuple[list[Sample], int]:
    """Write a shard. Returns its samples, and where the content of the last picture begins."""
    samples: list[Sample] = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for number in range(rng.randint(1, 6)):
            stem = rng.choice([f"{number:04d}", f"trip {number}.05", f"a/b{number}", f"caf\u00e9{number}"])
            image, text = rng.choice([("png", "txt"), ("img", "cap"), ("JPG", "text"), ("input.png", "outputs.txt")])
            if rng.random() < 0.2:
                add(f"._{number}.png", b"of macOS")
            words = rng.choice(WORDS)
            kind = rng.choice(["text", "text", "json", "list", "half", "cp1252", "damaged json", "none", "extra"])
            if kind == "extra":
                add(f"{stem}.npy", b"numbers")
            if kind in ("json", "list", "half"):
                caption = [words] if kind == "list" else words + " \ufffd" * (kind == "half")
                add(f"{stem}.json", json.dumps({"caption": caption, "n": 1}).replace("\\ufffd", "\\ud83d").encode())
            elif kind in ("cp1252", "damaged json"):
                add(f"{stem}.{text if kind == 'cp1252' else 'json'}", b"caf\xe9" if kind == "cp1252" else b"[1]")
            elif kind != "none":
                add(f"{stem}.{text}", words.encode())
            add(f"{stem}.{image}", picture(rng))
            samples.append(
                Sample(
                    [] if kind in ("cp1252", "damaged json", "none") else [words + " \ufffd" * (kind == "half")],
                    {"cp1252": f"{stem}.{text}", "damaged json": f"{stem}.json"}.get(kind, ""),
                    "member of the kind .npy" * (kind == "extra"),
                )
            )
        end = tar.offset
    return samples, end - 512


def check_shard(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    samples, start = shard(path, rng)
    named = []
    if len(samples) > 1 and rng.random() < 0.4:
        os.truncate(path, rng.randrange(start - 400, start + 9))  # in the header of the last picture, or in its content
        samples.pop()
        named = [str(path)]
    has_captions = any(sample.captions for sample in samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(path, require_captions=False, captions=[] if has_captions else ["{__key__}"])
    if has_captions:
        assert [source.captions(index) for index in range(len(source))] == [sample.captions for sample in samples]
    assert len(source) == len(samples)
    assert all(source.image(index).size == (4, 4) for index in range(len(source)))
    told = [name.removeprefix(f"{path}: ") for name, _ in source.unread.named]
    assert told == [*(sample.named for sample in samples if sample.named), *named]
    assert source.unread.counted == Counter(sample.counted for sample in samples if sample.counted)


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_a_shard_is_read_named_or_counted(tmp_path: Path, seed: int) -> None:
    check_shard(tmp_path / "a.tar", seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(FOLDERS, CAMPAIGN))
def test_hundreds_of_shards_are_read_named_or_counted(tmp_path: Path, seed: int) -> None:
    check_shard(tmp_path / "a.tar", seed)
