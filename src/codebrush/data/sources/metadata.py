"""Reads, and writes, the tables in a folder that describe its pictures by their file names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.sources.column_names import CAPTION_COLUMNS, PATH_COLUMNS, usual_columns
from codebrush.data.sources.file_names import escaped
from codebrush.data.sources.json_columns import common_columns
from codebrush.data.sources.picture_names import (
    MOST_LOOKED_AT,
    PictureNames,
    column_note,
    first_rows,
    name_unclear,
    naming_column,
    relative,
)
from codebrush.data.sources.table_reader import first_records
from codebrush.data.sources.tables import load_files
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ROWS = 100_000  # of a table that is looked through for the name of a picture
METADATA_FILE = "metadata.jsonl"
NEW = "\x7ffile_name"  # a column on its way to the name file_name, which another may have
METADATA_NAMES = frozenset(f"metadata.{ending}" for ending in ("jsonl", "ndjson", "csv", "tsv", "parquet"))


def write_metadata(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write metadata.jsonl, one JSON object a row, into a folder of pictures; a row's picture is its "file_name"."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / METADATA_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def tables_about(
    source: str,
    folder: Path,
    tables: Sequence[str],
    names: PictureNames,
    unread: Unread,
    *,
    wanted: str | None = None,
    alone: bool = True,
) -> tuple[list[str], list[str]]:
    """Those of `tables` that name one of the pictures `names` (captions.csv, labels.tsv, ...), and those that cannot be
    read, or name pictures that are elsewhere, which go into `unread`.

    The column of file names is `wanted`, has a usual name or is known by its cells; without a column of captions the
    last is only used if `alone`: no caption files are beside the pictures. A table is read as far as its first row
    about a picture.
    """
    found, broken = list[str](), list[str]()
    for name in tables:
        try:
            reason = _reason_against(folder, name, names, unread, wanted, alone)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        except ValueError as error:
            reason = "not UTF-8 or UTF-16 text" if isinstance(error, UnicodeDecodeError) else str(error)
        if reason:
            unread.name(f"{source}/{name}", reason)
            broken.append(name)
        elif reason is not None:
            found.append(name)
    return found, broken


def _reason_against(
    folder: Path, name: str, names: PictureNames, unread: Unread, wanted: str | None, alone: bool
) -> str | None:
    """Why a table cannot be used, "" if it can be, None if it is about no pictures.

    Raises OSError or ValueError if it cannot be read.
    """
    broken = broken_about = unclear = ""
    number, whole, column = 0, False, None

    def is_known(cell: Any) -> bool:
        return names.find(name, cell) is not None

    for number, (row, problem) in enumerate(first_records(folder / name, MOST_ROWS), 1):
        column = _column_called(list(row), wanted)
        by_cells = number <= MOST_LOOKED_AT and (alone or bool(usual_columns(CAPTION_COLUMNS, list(row))))
        is_about = (column is not None and is_known(row[column])) or (by_cells and bool(naming_column([row], is_known)))
        if is_about and not problem:
            return ""
        whole = whole or not problem
        if is_about:
            broken_about = broken_about or problem
        elif column is not None or not row:
            broken = broken or problem
            unclear = unclear or ("" if column is None else names.reason(name, row[column]))
        elif number >= MOST_LOOKED_AT:
            return None
    if number == MOST_ROWS and column is not None:
        unread.note(f"{name} names no picture of this folder in its first {number:,} rows")
    return broken_about or ("" if whole else broken) or unclear or None


def read_metadata(
    source: str,
    folder: Path,
    pictures: Sequence[str],
    names: PictureNames,
    metadata: Sequence[str],
    unread: Unread,
    wanted: str | None = None,
) -> "Dataset | None":
    """The rows of the tables, then a row with nothing but the name for each picture that they leave out.

    A table that cannot be read, or names no file, costs itself; so does a row without a name. None if no table is left.
    A column `wanted` of file names is in the result too, under its own name.
    """
    from datasets import Dataset

    parts: list[Dataset] = []
    is_used = False
    for name in metadata:
        place, before = f"{source}/{name}", len(unread.named)
        try:
            part = load_files(place, folder, [name], unread)
        except DataError as error:
            unread.name(place, str(error).removeprefix(f"{place}: "))
            continue
        _note_lost_rows(name, len(unread.named) - before, unread)
        column = _file_column(part, name, names, unread, wanted)
        if column is None and not len(part):
            unread.name(place, "none of its rows can be read")
            continue
        if column is None:
            unread.name(place, f"no column file_name; there are {', '.join(part.column_names)}")
            continue
        is_used = is_used or column == wanted
        cells = list(part[column])
        paths = [relative(name, cell) for cell in cells]
        name_unclear(place, name, [cell for cell in cells if names.find(name, cell) is None], names, unread)
        if None in paths:
            number = paths.count(None)
            unread.name(place, f"{number} {'row has' if number == 1 else 'rows have'} no file name")
            part = part.select([index for index, path in enumerate(paths) if path is not None])
        named = names.named(name, [cell for cell, path in zip(cells, paths, strict=True) if path is not None], unread)
        part = part.add_column(NEW, named).remove_columns(column)  # pyright: ignore[reportCallIssue]
        parts.append(part.rename_column(NEW, "file_name"))  # a table without columns would have no rows
    if not parts:
        return None
    described = {name for part in parts for name in part["file_name"]}
    left_out = [escaped(name) for name in pictures if escaped(name) not in described]
    if left_out:
        parts.append(Dataset.from_dict({"file_name": left_out}))
    joined = common_columns(parts)
    if not is_used or wanted is None or wanted in joined.column_names:
        return joined
    return joined.add_column(wanted, list(joined["file_name"]))  # pyright: ignore[reportCallIssue]


def _note_lost_rows(table: str, number: int, unread: Unread) -> None:
    if number:
        rows = "1 row" if number == 1 else f"{number:,} rows"
        has = "its picture has" if number == 1 else "their pictures have"
        unread.note(f"{table}: {rows} of it could not be read: {has} no caption")


def _column_called(columns: Sequence[str], wanted: str | None) -> str | None:
    """The column of file names: `wanted` if there is one, else that of a usual name in any case."""
    return wanted if wanted in columns else next(iter(usual_columns(PATH_COLUMNS, columns)), None)


def _file_column(part: "Dataset", table: str, names: PictureNames, unread: Unread, wanted: str | None) -> str | None:
    """The column of file names of a table: by its name, else, or if that names no picture, by its cells."""
    column = _column_called(part.column_names, wanted)
    if column is not None and (column == wanted or any(names.find(table, cell) for cell in part[column])):
        return column
    found = naming_column(first_rows(part), lambda cell: names.find(table, cell) is not None)
    if found is not None:
        unread.note(column_note(table, found))
    return found or column
