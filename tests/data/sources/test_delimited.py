"""Records of CSV and TSV files as people have them: what is plain is read, what is not is named by its line."""

from pathlib import Path

import pytest

from codebrush.data.sources import delimited
from codebrush.data.sources.delimited import read_records

THING = {"file_name": "1.png", "text": "a thing"}


def records(path: Path, content: str | bytes) -> list[tuple[int, dict[str, str | None] | str]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(each.line, each.problem or each.cells) for each in read_records(path).rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("file_name,text\n1.png,a thing\n", [(2, THING)]),
        ("file_name;text\n1.png;a thing\n", [(2, THING)]),
        ("file_name\ttext\r\n1.png\ta thing\r\n", [(2, THING)]),
        ("file_name, text\r1.png, a thing\r", [(2, THING)]),
        ("\n\nfile_name,text\n\n1.png,a thing", [(5, THING)]),
        ('file_name,text\n1.png,"two\nlines, and ""more"""\n', [(2, THING | {"text": 'two\nlines, and "more"'})]),
        ("file_name,text\n1.png\n", [(2, {"file_name": "1.png"})]),
        ("file_name,text\n1.png,a thing,,\n", [(2, THING)]),
        ("file_name,text\n2.png,red, green, blue\n1.png,a thing\n", [(2, "4 cells under"), (3, THING)]),
        ('file_name,text\n2.png,"5 inch\n1.png,a thing\n', [(2, "a quotation mark that is not closed"), (3, THING)]),
        ('file_name,text\n2.png,5" nails\n', [(2, {"file_name": "2.png", "text": '5" nails'})]),
        (
            'url,text\nhttp://h/1,"one\nhttp://h/2,two"\n',
            [(2, "its quoted cell goes on for 2 lines"), (3, {"url": "http://h/2", "text": 'two"'})],
        ),
        (b"file_name,text\n2.png,caf\xe9\n1.png,a thing\n", [(2, "not UTF-8 text"), (3, THING)]),
        ("file_name,text\n1.png,a thing\n".encode("utf-16"), [(2, THING)]),
        ("file_name,text\n1.png,one\u2028caption\x85\x0b\n", [(2, THING | {"text": "one\u2028caption\x85\x0b"})]),
        ("file_name,text\n1.png,a thing\n".encode("utf-32"), [(2, THING)]),
        (b"file_name,text\n2.png,a\0b\n1.png,a thing\n", [(2, "not UTF-8 text"), (3, THING)]),
        ("sep=;\nfile_name;text\n1.png;a thing\n", [(3, THING)]),
        ('"sep=\t"\r\nfile_name\ttext\r\n1.png\ta thing\r\n', [(3, THING)]),
        ("sep=^\nfile_name^text\n1.png^a thing\n", [(3, THING)]),
        (b"file_name,text,gr\xf6\xdfe\n1.png,a thing,2\n", [(2, THING | {r"gr\xf6\xdfe": "2"})]),
        ("", []),
        ("\n", []),
    ],
)
def test_comma_separated(tmp_path: Path, content: str | bytes, expected: list[tuple[int, dict[str, str] | str]]):
    found = records(tmp_path / "a.csv", content)
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert one == other or (isinstance(one, str) and isinstance(other, str) and one.startswith(other))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('url\ttext\nh\t"inch, say\nh\tthird\n', ['"inch, say', "third"]),
        ('url\ttext\nh\t"a ""quoted"", cell"\nh\t5" nails\n', ['a "quoted", cell', '5" nails']),
        ("url\ttext\nh\t1, 2; 3\n", ["1, 2; 3"]),
    ],
)
def test_between_tabs_a_quotation_mark_swallows_nothing(tmp_path: Path, content: str, expected: list[str]):
    found = records(tmp_path / "a.tsv", content)
    assert [cells["text"] for _, cells in found if isinstance(cells, dict)] == expected


def test_columns_of_one_name_are_told_apart(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("file_name,text,text,,text_2\n1.png,a,b,c,d\n")
    table = read_records(path)
    assert table.names == ["file_name", "text", "text_2", "column_4", "text_2_2"]
    assert table.note == "a.csv has columns without a name of their own: file_name, text, text_2, column_4, text_2_2"
    assert [row.cells["text_2"] for row in table.rows] == ["b"]


def test_few_lines_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And a quotation mark that is never closed costs its own line, however long the file."""
    monkeypatch.setattr(delimited, "LONGEST_RECORD", 10)
    path = tmp_path / "a.csv"
    path.write_text('file_name,text\n0.png,"open\n' + "".join(f"{number}.png,x\n" for number in range(1, 1000)))
    table = read_records(path)
    first = next(table.rows)
    assert (first.line, first.problem) == (2, "a quotation mark that is not closed")
    assert sum(row.cells.get("text") == "x" for row in table.rows) == 999


def test_utf16_without_a_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("file_name,text\n1.png,a thing\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"^not UTF-8 text; save it as UTF-8$"):
        read_records(tmp_path / "a.csv")
