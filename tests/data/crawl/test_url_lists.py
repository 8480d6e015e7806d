"""Lists of URLs: all rows are read in order, whatever is wrong with some of them."""

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codebrush.data.crawl.url_lists import UrlRow, read_list
from codebrush.errors import DataError


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_lists_of_every_kind(tmp_path: Path, kind: str):
    path = tmp_path / f"list{kind}"
    rows = [{"url": "http://h/1", "n": 1, "text": 'a "cat", sitting'}, {"url": "http://h/2", "n": 2, "text": "007"}]
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["url", "n", "text"], delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    assert list(read_list(path)) == [("http://h/1", 'a "cat", sitting'), ("http://h/2", "007")]
    assert next(iter(read_list(path, "text", "url"))) == ('a "cat", sitting', "http://h/1")
    with pytest.raises(DataError, match="no column src; name one with --url-column: url, n, text"):
        list(read_list(path, "src"))


def test_a_row_of_json_may_lack_what_others_have(tmp_path: Path):
    """Even the first one; only a list without any caption is refused, naming the columns that it has."""
    path = tmp_path / "list.jsonl"

    def listed(*rows: dict[str, Any]) -> list[UrlRow]:
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return list(read_list(path))

    first = {"url": "http://h/1", "n": 1}
    assert listed(first, {"url": "http://h/2", "text": "two"}) == [("http://h/1", ""), ("http://h/2", "two")]
    assert listed({}, {"alt": "one"}, {"uri": "http://h/3", "alt": "three"}, {}) == [
        ("", ""),
        ("", "one"),
        ("http://h/3", "three"),
        ("", ""),
    ]
    many = {f"column{number}": 1 for number in range(1000)}
    for rows, message in (
        ([first] * 3, r"list\.jsonl: no column caption; name one with --caption-column: url, n$"),
        ([{"text": "x"}, {"n": 1}], r"no column url; name one with --url-column: text, n$"),
        ([{}], r"no column url and caption; name one with --url-column and one with --caption-column: it has none$"),
        ([many, many | first], r"no column caption; name one with --caption-column: (column\d+, ){20}url$"),
    ):
        with pytest.raises(DataError, match=message):
            listed(*rows)
    assert list(read_list(path, caption_column="column1"))[1] == ("http://h/1", "")


def test_a_long_list_is_refused_without_being_held(tmp_path: Path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"url": "http://h/1", "words": "%s"}\n' % ("x" * 2000) * 2000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="no column caption"):
            sum(1 for _ in read_list(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000


def test_damaged_lists(tmp_path: Path):
    half = tmp_path / "half.jsonl"
    half.write_text('{"url": "http://h/1", "caption": "cut \\ud83d"}')
    assert list(read_list(half)) == [("http://h/1", "cut ?")]
    lines = tmp_path / "list.jsonl"
    lines.write_text(
        '{"url": "http://h/1", "caption": "one"}\n{"url": \n[1]\n{"url": 3}\n\n{"url": "x", "caption": "y"}'
    )
    assert list(read_list(lines)) == [("http://h/1", "one"), ("", ""), ("", ""), ("", ""), ("x", "y")]
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + '\n{"url": "x", "caption": "y"}')
    assert list(read_list(deep)) == [("", ""), ("x", "y")]
    (tmp_path / "b.csv").write_bytes(b'url,caption\n\xff,x\nhttp://h/1,y\n"http://h/2,z\nhttp://h/3,w\n')
    assert list(read_list(tmp_path / "b.csv")) == [("", ""), ("http://h/1", "y"), ("", ""), ("http://h/3", "w")]
    for name, content in [
        ("a.parquet", b"PAR1"),
        ("a.txt", b""),
        ("a.jsonl", b"\xff"),
        ("zeros.csv", b"url,cap\0tion\nhttp://h/1,x\n"),
        ("cut.csv", "url,caption\n".encode("utf-16")[:-1]),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            list(read_list(tmp_path / name))
    with pytest.raises(DataError, match="no such file"):
        list(read_list(tmp_path / "gone.csv"))
