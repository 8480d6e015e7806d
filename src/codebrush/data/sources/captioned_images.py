"""Opens captioned pictures of any source as numbered rows with a picture, its captions and its columns.

pets = open_source("pets.parquet", split="train", where=["breed is not null"], captions=["a {breed}"])
pets.image(0), pets.captions(0)
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from codebrush.data.decoding.images import decode_image
from codebrush.data.sources.caption_templates import Template, cell_text
from codebrush.data.sources.column_names import CAPTION_COLUMNS, NAME_COLUMNS, usual_columns
from codebrush.data.sources.file_names import existing, read_file
from codebrush.data.sources.filters import Clause, is_empty, parse_clause
from codebrush.data.sources.rows import Rows, load_rows
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, ImageError, UsageError

if TYPE_CHECKING:
    import pyarrow

WHOLE_BYTES = 65_536  # longer files are hashed by their length and three pieces of a quarter of this


class NoRowLeft(DataError):
    """A source has no row of the split that is asked for, or none that meets a condition."""


class CaptionedImages:
    """Rows 0 to len - 1, each a picture with its captions. Made by `open_source`."""

    def __init__(self, rows: Rows, kept: np.ndarray, templates: Sequence[Template], group: str | None):
        self._rows = rows
        self._kept = kept  # (N,) the numbers of the rows in the source
        self._templates = templates
        self._group = group

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def unread(self) -> Unread:
        """What of the source was not read."""
        return self._rows.unread

    @property
    def origin(self) -> str:
        """The source as the user named it."""
        return self._rows.origin

    def captions(self, index: int) -> list[str]:
        """All captions of a row, in the order of the templates. Empty only if opened with `require_captions=False`."""
        return [caption for template in self._templates for caption in template.fill(self._cells(index))]

    def group(self, index: int) -> str:
        """The group of the row: its cell in the group column, or its first caption if that is empty."""
        return self.group_cell(index) or self.captions(index)[0]

    def group_cell(self, index: int) -> str:
        """The row's cell in the group column; "" if that is empty or there is no such column."""
        value = None if self._group is None else self._cells(index)(self._group)
        return "" if is_empty(value) else cell_text(value)

    def name(self, index: int) -> str:
        """The name of a row in messages: its file, its id, or its number in the source."""
        cell = self._cells(index)
        for column in NAME_COLUMNS:
            if column in self._rows.text.column_names and isinstance(value := cell(column), str):
                return value
        value = self._cell_of_image(index)
        if isinstance(value, dict) and value.get("path"):
            return str(value["path"])
        return f"row {self._kept[index]} of {self.origin}"

    @property
    def schema(self) -> "pyarrow.Schema":
        """The columns of `row`."""
        return self._rows.text.schema

    def row(self, index: int) -> dict[str, Any]:
        """All columns of a row except the picture."""
        cell = self._cells(index)
        return {column: cell(column) for column in self._rows.text.column_names}

    def cell(self, index: int, column: str) -> Any:
        """The value of one column of a row."""
        return self._cells(index)(column)

    def image(self, index: int, wanted: int | None = None) -> Image.Image:
        """Decode the row's picture, as RGB; if its shorter side needs only `wanted` pixels, a large one comes reduced
        (see `decode_image`).

        Raises:
            ImageError: if it cannot be read; names the row.
        """
        try:
            return decode_image(self.contents(index), wanted=wanted)
        except ImageError as error:
            raise ImageError(f"{self.name(index)}: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all columns and picture files.

        Long picture files are hashed by their length, beginning, middle and end: these differ between any two
        compressed pictures that differ at all.
        """
        digest = hashlib.sha256()
        for start in range(0, len(self), 1000):
            rows = self._rows.text.take(self._kept[start : start + 1000]).to_pylist()
            digest.update(json.dumps(rows, default=str, sort_keys=True).encode())
        for index in range(len(self)):
            digest.update(digest_of_pieces(self._file_of(index)))
        return digest.hexdigest()

    def _cells(self, index: int) -> Callable[[str], Any]:
        number = int(self._kept[index])
        return lambda column: self._rows.text.column(column)[number].as_py()

    def _cell_of_image(self, index: int) -> Any:
        return self._rows.images[int(self._kept[index])][self._rows.image_column]

    def _file_of(self, index: int) -> bytes | Path | None:
        """The bytes or the path of a row's picture file; None if it has none."""
        stored = self._cell_of_image(index)
        if isinstance(stored, dict):
            stored = stored.get("path") if stored.get("bytes") is None else stored["bytes"]
        return self._rows.base / stored if isinstance(stored, str) else stored

    def files(self) -> Iterator[Path]:
        """The picture files that rows name; none of those whose picture is in the source itself."""
        located = (self._file_of(index) for index in range(len(self)))
        return (file for file in located if isinstance(file, Path))

    def contents(self, index: int) -> bytes:
        """The bytes of the row's picture file.

        Raises:
            ImageError: if there is none or it cannot be read.
        """
        located = self._file_of(index)
        if not located:
            raise ImageError("the row holds no picture")
        try:
            return located if isinstance(located, bytes) else read_file(located)
        except OSError as error:
            raise ImageError((error.strerror or str(error)).lower()) from error


def digest_of_pieces(located: bytes | Path | None) -> bytes:
    """The sha256 of a file's length and content; of a long file, of its length, beginning, middle and end."""
    try:
        with io.BytesIO(located or b"") if not isinstance(located, Path) else existing(located).open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            starts, piece = (0,), WHOLE_BYTES
            if length > WHOLE_BYTES:
                starts, piece = (0, length // 2, length - WHOLE_BYTES // 4), WHOLE_BYTES // 4
            digest = hashlib.sha256(length.to_bytes(8, "big"))
            for start in starts:
                file.seek(start)
                digest.update(file.read(piece))
    except OSError as error:  # the row is skipped later, for this reason
        return str(error.strerror).encode()
    return digest.digest()


def open_source(
    source: str | Path,
    *,
    split: str | None = None,
    where: Sequence[str | Clause] = (),
    captions: Sequence[str] = (),
    image_column: str | None = None,
    group: str | None = None,
    limit: int | None = None,
    require_captions: bool = True,
    strict: bool = False,
    exclude: Sequence[str] = (),
    cache: Path | None = None,
    tell: bool = True,
) -> CaptionedImages:
    """Open captioned pictures: a folder, .parquet, .tar (WebDataset), .csv or .jsonl files, a glob, or a hub id.

    A folder of pictures has metadata.csv or metadata.jsonl with the column file_name, or a caption file beside each
    picture with one caption a line; its rows get the column `folder`. A folder without pictures is read as tables or
    shards; in one with pictures those are left out, with a warning. docs/data.md says what is read and how.

    `split` keeps one split, `where` the rows that meet every condition (`filters.parse_clause`), and `limit` the first
    rows of those. `captions` are templates over the columns (`caption_templates`); without any, the first column with
    a usual name (`CAPTION_COLUMNS`) is used. `group` names the column of `CaptionedImages.group`.

    What cannot be read is left out and listed in `CaptionedImages.unread`; so are rows without a caption, unless
    `require_captions` is False. With `strict` the first of them is an error. `exclude` are patterns of names that are
    left out in a folder. `cache` is the folder of the copy of a single shard or Parquet file; None is the usual one.
    With `tell` there is a warning of what cannot be read.

    Raises:
        UsageError: if `limit` is below 1.
        DataError: if the source cannot be read, a column or split does not exist, or no row is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of rows is {limit}; it must be 1 or more")
    rows = load_rows(str(source), image_column, strict=strict, exclude=exclude, cache=cache)
    table = rows.text
    clauses = [each if isinstance(each, Clause) else parse_clause(each) for each in where]
    templates = [Template.parse(text) for text in captions] or [_default_template(rows)]
    for what, column in [
        *((f'the condition "{clause.text}"', clause.column) for clause in clauses),
        *((f'the caption template "{each.text}"', column) for each in templates for column in each.columns),
        *((("the group", group),) if group is not None else ()),
    ]:
        if column not in table.column_names:
            raise DataError(f"{source}: {what} needs the column {column}; there are {', '.join(table.column_names)}")
    if split is not None and (clause := _split_clause(rows, split)):
        clauses.insert(0, clause)
    kept = _filter(rows, clauses)[:limit]
    result = CaptionedImages(rows, kept, templates, group)
    if require_captions:
        result = CaptionedImages(rows, _with_captions(result, rows, kept, templates), templates, group)
    if tell:
        rows.unread.warn()
    return result


def _default_template(rows: Rows) -> Template:
    for column in usual_columns(CAPTION_COLUMNS, rows.text.column_names):
        if column != rows.image_column:
            return Template(f"{{{column}}}", (column,), each=True)
    columns = ", ".join(rows.text.column_names)
    said = "".join(f"; {line.removeprefix(f'{rows.origin}: ')}" for line in rows.unread.lines)
    raise DataError(f'{rows.origin}: no caption column; give a template like "{{label}}" over {columns}{said}')


def _split_clause(rows: Rows, split: str) -> Clause | None:
    if "split" not in rows.text.column_names:
        if split == "train":  # the name of the only split in a source without splits
            return None
        raise DataError(f"{rows.origin}: has no splits, so there is no {split}")
    names = sorted({str(name) for name in rows.text.column("split").unique().to_pylist() if name is not None})
    if split not in names:
        raise NoRowLeft(f"{rows.origin}: no split {split}; there are {', '.join(names)}")
    return Clause(f"split = {split}", "split", "=", (split,))


def _filter(rows: Rows, clauses: Sequence[Clause]) -> np.ndarray:
    """The numbers of the rows that meet every condition, in order."""
    kept = np.arange(len(rows.images))
    for clause in clauses:
        values = rows.text.column(clause.column).take(kept).to_pylist()
        kept = kept[np.fromiter((clause.keeps(value) for value in values), bool, len(kept))]
        if not len(kept):
            raise NoRowLeft(f'{rows.origin}: no row is left by the condition "{clause.text}"')
    return kept


def _with_captions(result: CaptionedImages, rows: Rows, kept: np.ndarray, templates: Sequence[Template]) -> np.ndarray:
    """The rows for which some template gives a caption; the others go into what is not read.

    Raises:
        DataError: if no row has a caption, or with `strict` one has none.
    """
    without = np.ones(len(kept), bool)
    for template in templates:
        empty = np.zeros(len(kept), bool)
        for column in template.columns:
            values = rows.text.column(column).take(kept).to_pylist()
            empty |= np.fromiter((is_empty(value) for value in values), bool, len(kept))
        without &= empty
    number = int(without.sum())
    if number == len(kept):
        said = "".join(f"; {line.removeprefix(f'{rows.origin}: ')}" for line in rows.unread.lines)
        raise DataError(
            f"{rows.origin}: none of the {number:,} pictures has a caption: put a text file beside each, or give a "
            f"caption template like {{folder}}{said}"
        )
    if number:
        first = result.name(int(without.argmax()))
        reason = "no caption" if number == 1 else f"no caption; {number:,} of {len(kept):,} pictures have none"
        rows.unread.name(first, f"{reason}, and are left out" if number > 1 else f"{reason}, so it is left out")
    return kept[~without]
