"""Folders as people have them, made at random: what goes in is read, named or counted, and read right."""

import io
import json
import os
import random
import tarfile
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from codebrush.data.sources.captioned_images import open_source

FOLDERS = 12  # in the fast suite; `make test-long` makes 300
WORDS = ("a cat", "one\u2028line", "caf\u00e9", '5" nails', "a, b; c", "\u732b", "x: y", '"quoted"')
LITTER = {  # a file that is not read -> how it is counted
    "notes.docx": ".docx file",
    "clip.mp4": "video file (.mp4)",
    "photo.jxl": "JPEG XL file (.jxl)",
    "drawing.svg": "SVG file (.svg)",
    "Thumbs.db": "file of the operating system",
    ".hidden": "hidden file",
    "alone.txt": ".txt file",
    "noending": "file without an ending",
    "model.safetensors": ".safetensors file",
}


def picture(rng: random.Random, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), tuple(rng.randrange(256) for _ in range(3))).save(file, kind)
    return file.getvalue()


@dataclass
class Made:
    """What a folder holds, and what must come out of it."""

    captions: dict[str, list[str]] = field(default_factory=dict)  # picture -> its captions
    counted: Counter[str] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)  # ends of the names of what cannot be read


def fill(folder: Path, rng: random.Random) -> Made:
    """Pictures with captions of all kinds, among what is not read."""
    made = Made()
    places = ["", "sub/", "deep/er/"][: rng.randint(1, 3)]
    for number in range(rng.randint(2, 8)):
        place = rng.choice(places)
        (folder / place).mkdir(parents=True, exist_ok=True)
        stem = rng.choice([f"p{number}", f"trip 22.05 {number}", f"caf\u00e9{number}", f"\u732b{number}"])
        written = unicodedata.normalize(rng.choice(["NFC", "NFD"]), stem)
        ending = rng.choice([".png", ".PNG", ".jpg", ""])
        (folder / f"{place}{written}{ending}").write_bytes(picture(rng, "JPEG" if ending == ".jpg" else "PNG"))
        add_caption(folder, f"{place}{unicodedata.normalize('NFC', stem)}", f"{place}{written}{ending}", rng, made)
    for name in rng.sample(sorted(LITTER), rng.randint(0, len(LITTER))):
        (folder / rng.choice(places) / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / rng.choice(places) / name).write_bytes(b"neither picture nor text")
        made.counted[LITTER[name]] += 1
    for kind in rng.sample(("pipe", "link", "bin", "linked folder"), rng.randint(0, 4)):
        add_special(folder, kind, rng, made)
    return made


def add_caption(folder: Path, stem: str, picture: str, rng: random.Random, made: Made) -> None:
    texts = rng.sample(WORDS, rng.randint(1, 2))
    made.captions[picture] = texts
    kind = rng.choice([".txt", ".TXT", ".caption", "whole", ".json", "utf-16", "cp1252", "damaged json", "none"])
    if kind in (".txt", ".TXT", ".caption"):
        (folder / f"{stem}{kind}").write_text("\r\n".join(texts), encoding=rng.choice(["utf-8", "utf-8-sig"]))
    elif kind == "whole":
        (folder / f"{picture}.txt").write_text("\n".join(texts), encoding="utf-8")
    elif kind == ".json":
        (folder / f"{stem}.json").write_text(json.dumps({"caption": texts, "width": 4}))
    elif kind == "utf-16":
        (folder / f"{stem}.txt").write_bytes("\n".join(texts).encode("utf-16"))
    else:
        made.captions[picture] = []
        if kind != "none":
            name, data = (f"{stem}.json", b"{") if kind == "damaged json" else (f"{stem}.txt", b"caf\xe9 and more")
            (folder / name).write_bytes(data)
            made.named.add(name)


def add_special(folder: Path, kind: str, rng: random.Random, made: Made) -> None:
    if kind == "pipe":
        os.mkfifo(folder / "pipe.png")
        made.counted["pipe"] += 1
    elif kind == "link":
        (folder / "dead").symlink_to("/nowhere/at/all")
        made.counted["broken link"] += 1
    elif kind == "bin":
        (folder / "#recycle").mkdir()
        (folder / "#recycle" / "old.png").write_bytes(picture(rng))
        made.counted["folder called #recycle"] += 1
    else:
        store = folder.with_name(f"{folder.name}-store")
        store.mkdir()
        (store / "far.png").write_bytes(picture(rng))
        (folder / "linked").symlink_to(store)
        (folder / "linked again").symlink_to(store)
        made.captions["linked/far.png"] = []
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
    assert all(source.image(index).size == (4, 4) for index in range(len(source)))


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_a_folder_is_read_named_or_counted(tmp_path: Path, seed: int) -> None:
    (tmp_path / "pets").mkdir()
    check_folder(tmp_path / "pets", seed)


@pytest.mark.long
def test_three_hundred_folders_are_read_named_or_counted(tmp_path: Path) -> None:
    for seed in range(FOLDERS, 300):
        (tmp_path / str(seed)).mkdir()
        check_folder(tmp_path / str(seed), seed)


def shard(path: Path, rng: random.Random) -> tuple[list[list[str]], list[str], Counter[str]]:
    """Captions of the samples in a shard, items that are named, and kinds that are counted."""
    captions: list[list[str]] = []
    named: list[str] = []
    counted: Counter[str] = Counter()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for number in range(rng.randint(1, 6)):
            stem = rng.choice([f"{number:04d}", f"trip {number}.05", f"a/b{number}", f"caf\u00e9{number}"])
            image, text = rng.choice([("png", "txt"), ("img", "cap"), ("JPG", "text"), ("input.png", "outputs.txt")])
            add(f"{stem}.{image}", picture(rng))
            words = rng.choice(WORDS)
            kind = rng.choice(["text", "text", "cp1252", "none", "extra"])
            if kind == "cp1252":
                add(f"{stem}.{text}", b"caf\xe9")
                named.append(f"{stem}.{text}")
            elif kind != "none":
                add(f"{stem}.{text}", words.encode())
            if kind == "extra":
                add(f"{stem}.npy", b"numbers")
                counted["member of the kind .npy"] += 1
            captions.append([words] if kind in ("text", "extra") else [])
    return captions, named, counted


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_a_shard_is_read_named_or_counted(tmp_path: Path, seed: int) -> None:
    captions, named, counted = shard(tmp_path / "a.tar", random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(tmp_path / "a.tar", require_captions=False, captions=["{txt}", "{caption}"][:0])
    assert [source.captions(index) for index in range(len(source))] == captions
    assert [name.split(": ", 1)[1] for name, _ in source.unread.named] == named
    assert source.unread.counted == counted
