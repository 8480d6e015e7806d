"""Targets of fuzzing: texts, captions, tables, shards and settings."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from fuzz_parts import ROOT, Made, in_file, png

from codebrush.data.crawl.robots import Robots
from codebrush.data.crawl.url_lists import read_list
from codebrush.data.sources.caption_files import captions_in
from codebrush.data.sources.caption_templates import Template
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.sources.filters import parse_clause
from codebrush.data.sources.shard_reader import _samples
from codebrush.data.sources.table_reader import first_records
from codebrush.data.sources.unread import Unread
from codebrush.data.streaming.shards import Shard, rows_in
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import CodebrushError
from codebrush.hub.catalogue import CATALOGUE_FILE, load_catalogue
from codebrush.text.pasted import pasted, plain_text, typed, typed_text
from codebrush.text.prompt_writing import with_negative, with_style, without_style
from codebrush.text.prompts import doubts, parse_prompt, understood
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.recipes import read_recipe
from packs import micro_tokenizer

# Texts


def text_of(data: bytes) -> str:
    """A text as programs get it, with what is not UTF-8 as halves of characters."""
    return data.decode("utf-8", "surrogateescape")[:5000]


PROMPTS = [
    "a red apple", "a red apple:1.2 | a dog:-0.5", "((a cat)), [a dog:0.5], (fox:1.3) AND bird", "a \\| b \\: c",
    "{x}++ <lora:thing:0.5> BREAK --ar 16:9 --v 5", "a:1 | b : 2 | c:3:4", "🍎 é 中文", "a" * 300,
    "(" * 50 + "a" + ")" * 50,
    "[from:to:0.3] embedding:x a cat::2 a dog::-1", "a | | b", ":-1", "flag: France",
]  # fmt: skip
MARKS = [*b"( ) [ ] { } | : :: \\ ++ BREAK <lora: > 1.5 - ,".split(), b"--ar ", b" AND ", b" a "]


def make_prompts(folder: Path) -> Made:
    tokenizers = [micro_tokenizer(), Tokenizer.wordpiece()]

    def read(data: bytes) -> None:
        text = text_of(data)
        for parse in (parse_prompt, doubts, understood, pasted, plain_text, typed, typed_text):
            with suppress(CodebrushError):
                parse(text)
        for write in (lambda: with_style(text, "{prompt}, flat style"), lambda: with_negative("a cat", text)):
            with suppress(CodebrushError):
                parse_prompt(write())
        without_style(text, "{prompt}, flat style")
        for tokenizer in tokenizers:
            with suppress(CodebrushError):
                tokenizer([text])

    return [each.encode() for each in PROMPTS], read


def make_conditions(folder: Path) -> Made:
    def read(data: bytes) -> None:
        text = text_of(data)
        for parse in (parse_clause, Template.parse):
            with suppress(CodebrushError):
                parse(text)

    clauses = [
        "style != noto",
        "n >= 3",
        "label in cat, 'a, b'",
        "`odd name` is not null",
        "{label}, a {tags}",
        "{{x}}",
    ]
    return [each.encode() for each in clauses], read


def make_robots(folder: Path) -> Made:
    text = b"User-agent: *\nDisallow: /a*b$\nAllow: /a\nCrawl-delay: 1.5\n\nUser-agent: codebrush\nDisallow: /%7e\n"

    def read(data: bytes) -> None:
        robots = Robots.parse(data.decode("utf-8", "replace"), "codebrush")
        for path in ("/", "/aaaaaab", "/%7Ex", "/" + "ab" * 500):
            robots.allows(path)

    return [text, b"Disallow: " + b"*a" * 200], read


# Captions and tables


ROWS = [{"file_name": "a.png", "text": "a cat", "n": 1}, {"file_name": "b.png", "text": 'a "dog", here', "n": None}]
CSV = b'file_name,text,n\na.png,"a ""cat"", here",1\nb.png,"two\nlines",2\n\nc.png,x,3\n'
JSONL = "".join(json.dumps(row) + "\n" for row in [*ROWS, {"file_name": "c.png", "text": ["a", "b"]}]).encode()
CELLS = [
    b"file_name", b"text", b"caption", b"url", b",", b"\t", b";", b"\r\n", b'""', b"sep=;\n", b"null", b"{", b"[[",
    b"]", b"\\ud800", b'":', b"http://a/b.png",
]  # fmt: skip


def make_captions(folder: Path) -> Made:
    def both(data: bytes) -> None:
        for name in ("a.txt", "a.json"):
            (folder / name).write_bytes(data)
            captions_in(folder / name, Unread("here"))

    seeds = [
        b"a cat\na dog\r\nan apple",
        "é 中文".encode("utf-16"),
        b'{"caption": ["a", "b"], "x": 1}',
        b'["a", {"text": "b"}]',
    ]
    return [*seeds, b"0 0.5 0.5 0.1 0.1\n", b'{"caption": {"a": [1, null, NaN]}}'], both


def make_tables(folder: Path) -> Made:
    def read(data: bytes) -> None:
        for name in ("t.csv", "t.tsv", "t.jsonl", "t.txt"):
            (folder / name).write_bytes(data)
            with suppress(ValueError):  # what its callers name the file with: it is no text
                list(first_records(folder / name, 1000))
        for name in ("t.csv", "t.tsv", "t.jsonl"):
            with suppress(CodebrushError):
                list(read_list(folder / name))

    urls = CSV.replace(b"file_name", b"url")
    return [
        CSV,
        CSV.replace(b",", b"\t"),
        JSONL,
        urls,
        JSONL.replace(b"file_name", b"url"),
        CSV.decode().encode("utf-16"),
    ], read


def whole_source(folder: Path, name: str) -> Callable[[bytes], object]:
    """Reads a source from its beginning to the last picture."""
    place = folder / "source"
    place.mkdir()
    for each in "abc":
        scene(0, ord(each), 16).image.save(place / f"{each}.png")
    count = itertools.count()

    def read(data: bytes) -> None:
        path = place / f"{name}"
        path.write_bytes(data)
        with suppress(CodebrushError):
            source = open_source(
                place if name.startswith("metadata") else path, cache=folder / f"cache{next(count) % 50}"
            )
            for index in range(min(len(source), 20)):
                source.captions(index)
                with suppress(CodebrushError):
                    source.image(index)

    return read


def make_metadata_csv(folder: Path) -> Made:
    return [CSV, b"file_name;text\na.png;a cat\n"], whole_source(folder, "metadata.csv")


def make_metadata_jsonl(folder: Path) -> Made:
    return [JSONL, b'{"file_name": "a.png", "text": {"x": [1]}}\n'], whole_source(folder, "metadata.jsonl")


def parquet(**options: Any) -> bytes:
    file = io.BytesIO()
    rows = [
        {"image": {"bytes": png(), "path": "a.png"}, "text": f"cat {number}", "url": "http://a/b.png"}
        for number in range(4)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def make_parquet(folder: Path) -> Made:
    source = whole_source(folder, "t.parquet")

    def read(data: bytes) -> None:
        source(data)
        for reader in (lambda path: list(read_list(path)), lambda path: rows_in(Shard(str(path), 1))):
            with suppress(CodebrushError):
                reader(folder / "source" / "t.parquet")

    return [
        parquet(),
        parquet(compression="zstd", data_page_version="2.0"),
        parquet(compression="none", use_dictionary=False),
    ], read


def shard(**options: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, **{"mode": "w", **options}) as made:
        for name, data in (
            ("0.png", png()),
            ("0.txt", b"a cat"),
            ("1.png", png()),
            ("1.json", b'{"caption": "a dog"}'),
            ("long/" * 30 + "2.jpg", png()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return file.getvalue()


def sparse_shard(size: int) -> bytes:
    """A tar of 2 kB whose one member, sparse as GNU tar writes it, is said to be as large as `size`."""
    member = tarfile.TarInfo("0.png")
    member.size = 16
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 16)
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + bytes(1024)


def make_shards(folder: Path) -> Made:
    def read(data: bytes) -> None:
        path = folder / "t.tar"
        path.write_bytes(data)
        list(_samples([(str(path), "")]))
        with suppress(CodebrushError):
            rows_in(Shard(str(path), len(data)))

    seeds = [
        shard(),
        shard(format=tarfile.PAX_FORMAT),
        shard(format=tarfile.GNU_FORMAT),
        shard(mode="w:gz"),
        sparse_shard(64),
    ]
    return seeds, read


def make_whole_shards(folder: Path) -> Made:
    return [shard(), shard(format=tarfile.PAX_FORMAT)], whole_source(folder, "t.tar")


# Settings


def make_recipes(folder: Path) -> Made:
    recipes = sorted((ROOT.parent / "recipes").rglob("*.yaml"))
    return [path.read_bytes() for path in recipes], in_file(
        folder / "r.yaml", lambda path: read_recipe(path, "pictures")
    )


def make_catalogues(folder: Path) -> Made:
    one = {
        "title": "t",
        "licence": "MIT",
        "kind": "clip",
        "files": [{"path": "a.pt", "size": 1, "sha256": "0" * 64, "mirrors": ["https://a/b"]}],
    }
    small = {
        "packs": {"p": {"title": "t", "image_size": 32, "members": {"clip": "m", "vqgan": "v"}}},
        "models": {"m": one, "v": {**one, "kind": "vqgan"}},
    }
    return [yaml.safe_dump(small).encode(), CATALOGUE_FILE.read_bytes()[:4000]], in_file(
        folder / "c.yaml", load_catalogue
    )


YAML = [
    b"&a ", b"*a", b"!!python/object/apply:os.system [x]", b"!!binary |\n", b"- ", b": ", b"{", b"[", b"? ",
    b"<<: *a\n", b"\n  ", b"---\n", b"2001-01-01", b".inf", b"loop:\n  steps: ", b"recipe: ", b"source: ",
]  # fmt: skip
