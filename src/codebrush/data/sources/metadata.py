"""Reads, and writes, the tables in a folder that describe its pictures by their file names."""

import json
import os
import posixpath
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
    known = _pictures_by_name(folder, pictures)
    for name in tables:
        rows = 0
        try:
            for cell in first_paths(folder / name, MOST_ROWS):
                rows += 1
                (path,) = _paths(name, [cell])
                if path is not None and comparable(path) in known:
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

    exact = _pictures_by_name(folder, pictures)
    parts: list[Dataset] = []
    for name in metadata:
        place = f"{source}/{name}"
        try:
            part = load_files(place, folder, [name], unread)
        except DataError as error:
            unread.name(place, str(error).removeprefix(f"{place}: "))
            continue
        column = path_column(part)
        if column is None:
            unread.name(place, f"no column file_name; there are {', '.join(part.column_names)}")
            continue
        paths = _paths(name, part[column])
        if None in paths:
            number = paths.count(None)
            unread.name(place, f"{number} {'row has' if number == 1 else 'rows have'} no file name")
            part = part.select([index for index, path in enumerate(paths) if path is not None])
        named = [exact.get(comparable(path), escaped(path)) for path in paths if path is not None]
        parts.append(part.remove_columns(column).add_column("file_name", named))  # pyright: ignore[reportCallIssue]
    if not parts:
        return None
    described = {name for part in parts for name in part["file_name"]}
    left_out = [escaped(name) for name in pictures if escaped(name) not in described]
    if left_out:
        parts.append(Dataset.from_dict({"file_name": left_out}))
    return common_columns(parts)


def _pictures_by_name(folder: Path, pictures: Sequence[str]) -> dict[str, str]:
    """Pictures, escaped, by what a table may call them: relative or whole paths, or names without their endings."""
    names = {comparable(str(folder / name)): escaped(name) for name in pictures}
    stems = [comparable(posixpath.splitext(name)[0]) for name in pictures]
    often = Counter(stems)
    names |= {stem: escaped(name) for stem, name in zip(stems, pictures, strict=True) if often[stem] == 1}
    return names | {comparable(name): escaped(name) for name in pictures}


def path_column(dataset: "Dataset") -> str | None:
    """The column of file names, by its usual names in any case."""
    return next(iter(usual_columns(PATH_COLUMNS, dataset.column_names)), None)


def _paths(table: str, cells: Sequence[Any]) -> list[str | None]:
    """Paths relative to the folder, of cells relative to the table's place; None for empty cells."""
    place = posixpath.dirname(table)
    return [
        None if is_empty(cell) else os.path.normpath(posixpath.join(place, str(cell).strip().replace("\\", "/")))
        for cell in cells
    ]
