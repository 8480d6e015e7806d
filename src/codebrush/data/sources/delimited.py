"""Reads the records of CSV and TSV files: any separator, rows of odd lengths, quotation marks that are never closed."""

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from codebrush.data.sources.column_names import CAPTION_COLUMNS, PATH_COLUMNS, URL_CAPTION_COLUMNS, URL_COLUMNS
from codebrush.data.sources.file_names import escaped
from codebrush.data.sources.text_files import BROKEN, NOT_TEXT, lines_of

SEPARATORS = (",", ";", "\t", "|")
KNOWN = frozenset(name.lower() for name in (*CAPTION_COLUMNS, *PATH_COLUMNS, *URL_COLUMNS, *URL_CAPTION_COLUMNS))
LONGEST_RECORD = 1_000  # lines; a quotation mark that is not closed within so many is not one
SWALLOWED = re.compile(r"[\r\n]\s*\S*://")  # an address behind a line break: the next row, most likely
STATED = re.compile(
    r'"?sep=(.)"?\s*', re.IGNORECASE
)  # the separator, in a line above the header that Excel understands
NOT_UTF8_TABLE = f'{NOT_TEXT} (Excel: "CSV UTF-8")'
QUOTED = re.compile(r'"(?:[^"]|"")*"')
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Record:
    """The record that begins in line `line`, counted from 1: its cells by column, empty ones None, and its problem.

    One with a problem has no cells, or such as `lines_of` gives where they are not UTF-8.
    """

    line: int
    cells: dict[str, str | None] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Records:
    """The names of a file's columns, different from each other, a note if the header has others, and the rows."""

    names: list[str]
    note: str
    rows: Iterator[Record]


def read_records(path: Path) -> Records:
    """The records of a file below its header. A few lines are in memory at once.

    The separator is the one by which the header has the most usual names, in TSV and text files the tab. A cell between
    tabs is quoted if it begins and ends with a quotation mark; it holds no tab and no line break. Bytes of the header
    that are not UTF-8 are escaped.

    Raises OSError if the file cannot be read, ValueError if its header is no text.
    """
    lines = _Lines(lines_of(path))
    while (first := lines.peek()) is not None and not first.strip():
        lines.drop(1)
    if first is not None and "\0" in first:
        raise ValueError(NOT_TEXT)
    if stated := STATED.fullmatch(first or ""):
        lines.drop(1)
        first = lines.peek()
    usual = "\t" if path.suffix.lower() in (".tsv", ".txt") else separator_of(first or "")
    separator = stated[1] if stated else usual
    header = [escaped(name.strip()) for name in _cells(lines, separator)[0]] if first is not None else []
    names = distinct(header)
    note = "" if names == header else f"{path.name} has columns without a name of their own: {', '.join(names)}"
    return Records(names, note, _records(lines, separator, names))


def _records(lines: "_Lines", separator: str, names: Sequence[str]) -> Iterator[Record]:
    while lines.peek() is not None:
        number = lines.number + 1
        cells, problem = _cells(lines, separator)
        if problem:
            yield Record(number, problem=problem)
        elif len(cells) > len(names) and any(cells[len(names) :]):
            reason = f"{len(cells)} cells under a header of {len(names)}; quote cells that hold the separator"
            yield Record(number, problem=reason)
        elif any(cells):
            problem = NOT_UTF8_TABLE if any(BROKEN.search(cell) for cell in cells) else ""
            yield Record(number, {name: cell or None for name, cell in zip(names, cells, strict=False)}, problem)


def separator_of(header: str) -> str:
    """The separator by which a header has the most usual names, else the most columns."""

    def rank(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"').lower() for name in header.split(separator)]
        return sum(name in KNOWN for name in names), len(names)

    return max(SEPARATORS, key=rank)


def distinct(header: Sequence[str]) -> list[str]:
    """The names of columns, with a number behind those that stand there again, and for those that are empty."""
    names: list[str] = []
    for place, name in enumerate(header, 1):
        wanted, number = name or f"column_{place}", 1
        given = wanted
        while given in names:
            number += 1
            given = f"{wanted}_{number}"
        names.append(given)
    return names


def _cells(lines: "_Lines", separator: str) -> tuple[list[str], str]:
    """Take a record's lines away and give its cells; no cells and the problem, and one line taken, if it has one."""
    line = (lines.peek() or "").rstrip("\r\n")
    if separator == "\t":
        lines.drop(1)
        cells = line.split("\t") if line else []
        return [cell[1:-1].replace('""', '"') if QUOTED.fullmatch(cell) else cell for cell in cells], ""
    options: Any = {"delimiter": separator, "skipinitialspace": True}
    try:
        reader = csv.reader(lines.ahead(), strict=True, **options)
        cells, length = next(reader, []), max(reader.line_num, 1)
    except csv.Error:
        lines.drop(1)
        if line.count('"') % 2:
            return [], "a quotation mark that is not closed"
        return next(csv.reader([line], **options), []), ""
    if length > 1 and any(SWALLOWED.search(cell) for cell in cells):
        lines.drop(1)
        return [], f"its quoted cell goes on for {length} lines with addresses: close or remove the quotation mark"
    lines.drop(length)
    return cells, ""


class _Lines:
    """Lines of a file with those ahead in memory; `number` is that of the last line taken away."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._buffer: deque[str] = deque(islice(lines, LONGEST_RECORD))
        self.number = 0

    def peek(self) -> str | None:
        return self._buffer[0] if self._buffer else None

    def ahead(self) -> Iterator[str]:
        return iter(self._buffer)

    def drop(self, count: int) -> None:
        for _ in range(min(count, len(self._buffer))):
            self._buffer.popleft()
            self.number += 1
        self._buffer.extend(islice(self._lines, LONGEST_RECORD - len(self._buffer)))
