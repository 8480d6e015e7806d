"""Lists the pictures in folders, picture files and data sources, with their captions and columns.

A picture file is identified by its absolute path, a picture inside a data source by the source, a number sign and its
name there: /data/pets.parquet#cat-17.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from codebrush.data.decoding.picture_formats import EXTENSIONS, is_picture_file
from codebrush.data.sources.caption_files import captions_beside
from codebrush.data.sources.captioned_images import Template
from codebrush.data.sources.column_names import CAPTION_COLUMNS, NAME_COLUMNS, usual_columns
from codebrush.data.sources.file_names import escaped, read_file
from codebrush.data.sources.filters import is_empty
from codebrush.data.sources.folder_reader import NoPicturesError
from codebrush.data.sources.rows import Rows, load_rows
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, ImageError
from codebrush.files import from_home
from codebrush.search.database import FRAME

# Columns that the database fills itself; columns of a data source with these names are called source_size and so on.
OWN_COLUMNS = frozenset(
    ("path", "source", "caption", "embedding", "width", "height", "size", "modified", "hash", "text_hash", "thumbnail")
) | {FRAME}
NOT_CAPTIONS = frozenset(("folder", "split", *NAME_COLUMNS))  # columns of which nobody makes captions
BATCH = 256  # rows read together
Value = str | int | float | bool


@dataclass(frozen=True)
class Candidate:
    """A picture to index: the file at `path`, or `data`, the contents of one in a data source (b"" if it has none)."""

    path: str
    source: str
    caption: str
    columns: dict[str, Value]
    data: bytes | None = None

    @property
    def text_hash(self) -> str:
        """sha256 (hex) of the caption and the columns."""
        return hashlib.sha256(json.dumps([self.caption, self.columns]).encode()).hexdigest()

    def contents(self) -> bytes:
        """The bytes of the picture file. Raises ImageError if there are none."""
        try:
            data = read_file(Path(self.path)) if self.data is None else self.data
        except OSError as error:
            raise ImageError((error.strerror or str(error)).lower()) from error
        if not data:
            raise ImageError("the row holds no picture" if self.data is not None else "the file is empty")
        return data


@dataclass(frozen=True)
class Source:
    """A place with pictures: how many there are, a candidate for each, and what of it was not read.

    `is_folder` says that every picture file below `name` belongs to it. `renamed` are the columns that are called
    otherwise in the database, by their names in the source. `captionless` are the columns of text of a source without
    captions, of which some could be made.
    """

    name: str
    count: int
    candidates: Iterable[Candidate]
    unread: Unread
    is_folder: bool = False
    renamed: dict[str, str] = field(default_factory=dict)
    captionless: list[str] = field(default_factory=list)

    def batches(self, size: int) -> Iterator[list[Candidate]]:
        """The candidates, `size` at a time."""
        candidates = iter(self.candidates)
        while batch := list(islice(candidates, size)):
            yield batch


def open_pictures(
    place: str,
    captions: Sequence[str] = (),
    image_column: str | None = None,
    *,
    strict: bool = False,
    exclude: Sequence[str] = (),
) -> Source:
    """Open a picture file, a folder, or any data source that training reads; captions are optional.

    `captions` are templates over the columns of the source, like "{label}". A folder without pictures is
    an empty source. `strict` and `exclude` are those of `load_rows`.

    Raises:
        DataError: if the place does not exist, is of an unknown kind or empty, or lacks a column.
    """
    path = Path(os.path.abspath(from_home(place)))
    name = escaped(str(path)) if path.exists() or not _is_hub_id(place) else place
    if path.is_file() and (path.suffix.lower() in EXTENSIONS or is_picture_file(path)):
        unread = Unread(name, strict)
        columns: dict[str, Value] = {"folder": escaped(path.parent.name)}
        candidate = Candidate(name, name, _joined(captions_beside(path, unread)), columns)
        unread.warn()
        return Source(name, 1, [candidate], unread)
    try:
        rows = load_rows(place, image_column, strict=strict, exclude=exclude)
    except NoPicturesError as error:
        error.unread.warn()
        return Source(name, 0, [], error.unread, is_folder=True)
    templates = _templates(rows, captions)
    used = {column for template in templates if template.each for column in template.columns} | {rows.image_column}
    others = [column for column in rows.text.column_names if column not in used]
    texts = [field.name for field in rows.text.schema if str(field.type).endswith("string")]
    written = [column for column in others if column in texts and column not in NOT_CAPTIONS and column[:2] != "__"]
    rows.unread.warn()
    names = _column_names(others)
    renamed = {column: own for column, own in names.items() if column != own}
    candidates = _candidates(name, rows, templates, names)
    return Source(name, len(rows.images), candidates, rows.unread, path.is_dir(), renamed, [] if templates else written)


def _is_hub_id(place: str) -> bool:
    return not os.path.isabs(place) and "*" not in place and place.count("/") == 1


def _templates(rows: Rows, captions: Sequence[str]) -> list[Template]:
    names = rows.text.column_names
    if not captions:
        usual = usual_columns(CAPTION_COLUMNS, names)
        found = next((each for each in usual if each != rows.image_column), None)
        return [] if found is None else [Template(f"{{{found}}}", (found,), each=True)]
    templates = [Template.parse(text) for text in captions]
    for template in templates:
        for column in template.columns:
            if column not in names:
                raise DataError(
                    f'{rows.origin}: the caption template "{template.text}" needs the column {column}; '
                    f"there are {', '.join(names)}"
                )
    return templates


def _candidates(name: str, rows: Rows, templates: Sequence[Template], names: dict[str, str]) -> Iterator[Candidate]:
    for start in range(0, len(rows.images), BATCH):
        cells = rows.images[start : start + BATCH][rows.image_column]
        texts = rows.text.slice(start, len(cells)).to_pylist()  # a table without columns gives as many empty rows
        for offset, (row, cell) in enumerate(zip(texts, cells, strict=True)):
            caption = _joined(text for template in templates for text in template.fill(row.__getitem__))
            given = {key: value for key, value in row.items() if key in names and not is_empty(value)}
            columns = {names[key]: _plain(value) for key, value in given.items()}
            stored = _stored(cell)
            if isinstance(stored, str):
                path = escaped(os.path.normpath(rows.base / stored))
                yield Candidate(path, name, caption, columns)
            else:
                own = _row_name(row, cell) or f"row {start + offset}"
                yield Candidate(f"{name}#{own}", name, caption, columns, stored or b"")


def _stored(cell: Any) -> bytes | str | None:
    """The file, or its path, in a cell of pictures; an empty file of a shard is no path."""
    if not isinstance(cell, dict):
        return cell
    return cell.get("path") if cell.get("bytes") is None else cell["bytes"]


def _row_name(row: dict[str, Any], cell: Any) -> str | None:
    named = next((row[column] for column in NAME_COLUMNS if isinstance(row.get(column), str)), None)
    return named or (cell.get("path") if isinstance(cell, dict) else None)


def column_name(name: str) -> str:
    """A column's name as the database writes it: letters, digits and underscores, but no underscore in front, which
    marks LanceDB's own columns.
    """
    return re.sub(r"\W", "_", name).lstrip("_") or "column"


def _column_names(columns: Iterable[str]) -> dict[str, str]:
    """A name in the database for each column of a source, all different whatever their case: a_b, a_b_2 ..."""
    columns, names = list(columns), dict[str, str]()
    taken: set[str] = set()
    wanted = {column: column_name(column) for column in columns}
    wanted |= {column: f"source_{name}" for column, name in wanted.items() if name.lower() in OWN_COLUMNS}
    for column in sorted(columns, key=lambda each: each != wanted[each]):  # those that keep their name first
        own, number = wanted[column], 1
        while own.lower() in taken:
            number += 1
            own = f"{wanted[column]}_{number}"
        taken.add(own.lower())
        names[column] = own
    return {column: names[column] for column in columns}


def _joined(captions: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in captions if text))


def _plain(value: Any) -> Value:
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value if not is_empty(entry))
    return value if isinstance(value, Value) else str(value)
