"""Reads, and writes, the tables in a folder that describe its pictures by their file names."""

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.sources.column_names import PATH_COLUMNS, usual_columns
from codebrush.data.sources.file_names import comparable, escaped
from codebrush.data.sources.filters import is_empty
from codebrush.data.sources.json_columns import common_columns
from codebrush.data.sources.table_reader import first_paths
from codebrush.data.sources.tables import load_files
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

DRIVE = re.compile(r"[A-Za-z]:/")  # a whole path of Windows
MOST_ROWS = 100_000  # of a table that is looked through for the name of a picture
METADATA_FILE = "metadata.jsonl"
METADATA_NAMES = frozenset(f"metadata.{ending}" for ending in ("jsonl", "ndjson", "csv", "tsv", "parquet"))


def write_metadata(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write metadata.jsonl, one JSON object a row, into a folder of pictures; a row's picture is its "file_name"."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / METADATA_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def tables_about(
    source: str, folder: Path, tables: Sequence[str], pictures: Sequence[str], unread: Unread
) -> tuple[list[str], list[str]]:
    """Those of `tables` that name one of the `pictures` in a column of file names (captions.csv, labels.tsv, ...), and
    those that cannot be read, which go into `unread`. A table is read as far as its first row about a picture.
    """
    found, broken = list[str](), list[str]()
    known = _Pictures(folder, pictures)
    for name in tables:
        rows = 0
        try:
            for cell in first_paths(folder / name, MOST_ROWS):
                rows += 1
                (path,) = _paths(name, [cell])
                if path is not None and known.called(path) is not None:
                    found.append(name)
                    break
            else:
                if rows == MOST_ROWS:
                    unread.note(f"{name} names no picture of this folder in its first {rows:,} rows")
        except OSError as error:
            unread.name(f"{source}/{name}", (error.strerror or str(error)).lower())
            broken.append(name)
        except ValueError as error:
            reason = "not UTF-8 or UTF-16 text" if isinstance(error, UnicodeDecodeError) else str(error)
            unread.name(f"{source}/{name}", reason)
            broken.append(name)
    return found, broken


def read_metadata(
    source: str, folder: Path, pictures: Sequence[str], metadata: Sequence[str], unread: Unread
) -> "Dataset | None":
    """The rows of the tables, then a row with nothing but the name for each picture that they leave out.

    A table that cannot be read, or names no file, costs itself; so does a row without a name. None if no table is left.
    """
    from datasets import Dataset

    known = _Pictures(folder, pictures)
    parts: list[Dataset] = []
    for name in metadata:
        place = f"{source}/{name}"
        try:
            part = load_files(place, folder, [name], unread)
        except DataError as error:
            unread.name(place, str(error).removeprefix(f"{place}: "))
            continue
        column = path_column(part)
        if column is None and not len(part):
            unread.name(place, "none of its rows can be read")
            continue
        if column is None:
            unread.name(place, f"no column file_name; there are {', '.join(part.column_names)}")
            continue
        paths = _paths(name, part[column])
        if None in paths:
            number = paths.count(None)
            unread.name(place, f"{number} {'row has' if number == 1 else 'rows have'} no file name")
            part = part.select([index for index, path in enumerate(paths) if path is not None])
        named = known.named(name, [path for path in paths if path is not None], unread)
        parts.append(part.remove_columns(column).add_column("file_name", named))  # pyright: ignore[reportCallIssue]
    if not parts:
        return None
    described = {name for part in parts for name in part["file_name"]}
    left_out = [escaped(name) for name in pictures if escaped(name) not in described]
    if left_out:
        parts.append(Dataset.from_dict({"file_name": left_out}))
    return common_columns(parts)


class _Pictures:
    """The pictures of a folder, by what a table may call them: relative or whole paths, in other capitals, or without
    their endings. Whole paths of another place are known by their ends.
    """

    def __init__(self, folder: Path, pictures: Sequence[str]) -> None:
        whole = {comparable(str(folder / name)): escaped(name) for name in pictures}
        relative = {comparable(name): escaped(name) for name in pictures}
        self._names = _unambiguous([(posixpath.splitext(name)[0], own) for name, own in relative.items()])
        self._names |= whole | relative
        self._folded = _unambiguous([(name.casefold(), own) for name, own in relative.items()])

    def called(self, path: str) -> str | None:
        """The picture, escaped, that a path means; None for none."""
        return self._here(path) or self._by_end(path)

    def named(self, table: str, paths: Sequence[str], unread: Unread) -> list[str]:
        """The pictures, escaped, that the paths in a table mean, else the paths. Several paths that could mean one
        picture by their ends mean none. What was found by ends is noted.
        """
        here = [self._here(path) for path in paths]
        ends = {path: end for path, own in zip(paths, here, strict=True) if not own and (end := self._by_end(path))}
        often = Counter([*ends.values(), *(own for own in {*here} if own)])
        ends = {path: end for path, end in ends.items() if often[end] == 1}
        if ends:
            first, end = next(iter(ends.items()))
            unread.note(f"{table} has whole paths of another place; {escaped(first)} is read as {end}, and others so")
        return [own or ends.get(path) or escaped(path) for own, path in zip(here, paths, strict=True)]

    def _here(self, path: str) -> str | None:
        name = comparable(path)
        return self._names.get(name) or self._folded.get(name.casefold())

    def _by_end(self, path: str) -> str | None:
        """The picture with the longest end of a whole path for its name."""
        if not (path.startswith("/") or DRIVE.match(path)):
            return None
        parts = [part for part in path.split("/") if part]
        found = (self._here("/".join(parts[start:])) for start in range(1, len(parts)))
        return next((name for name in found if name), None)


def _unambiguous(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs of a key and a value as a table, without keys that stand there several times."""
    often = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if often[key] == 1}


def path_column(dataset: "Dataset") -> str | None:
    """The column of file names, by its usual names in any case."""
    return next(iter(usual_columns(PATH_COLUMNS, dataset.column_names)), None)


def _paths(table: str, cells: Sequence[Any]) -> list[str | None]:
    """Paths relative to the folder, of cells relative to the table's place; None for empty cells."""
    place = posixpath.dirname(table)
    paths = [None if is_empty(cell) else str(cell).strip().replace("\\", "/") for cell in cells]
    return [path and os.path.normpath(path if DRIVE.match(path) else posixpath.join(place, path)) for path in paths]
