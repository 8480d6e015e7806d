"""Reads any source into rows with undecoded pictures: a folder, files, a glob or a hub data set."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codebrush.data.decoding.picture_formats import HEAD, readable_format
from codebrush.data.sources.column_names import PATH_COLUMNS, usual_columns
from codebrush.data.sources.file_names import escaped
from codebrush.data.sources.folder_reader import load_folder
from codebrush.data.sources.picture_names import (
    PictureNames,
    column_note,
    first_rows,
    naming_column,
    with_found_pictures,
)
from codebrush.data.sources.tables import BUILDERS, load_files, load_from_hub
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError
from codebrush.files import from_home

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

LOOKED_AT = 100  # rows, for a picture in a column of files
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name


@dataclass(frozen=True)
class Rows:
    """All rows of a source, before any filter.

    `text` is an Arrow table of all columns except those with file contents. `images` has the single column
    `image_column`, whose cells are {"bytes", "path"}, bytes, or paths relative to `base`, with bytes that are not UTF-8
    escaped (`file_names`). Both have the same rows. `unread` says what of the source was not read.
    """

    origin: str
    text: "pa.Table"
    images: "Dataset"
    image_column: str
    base: Path
    unread: Unread


def load_rows(
    source: str,
    image_column: str | None = None,
    *,
    strict: bool = False,
    exclude: Sequence[str] = (),
    cache: Path | None = None,
) -> Rows:
    """Read a source: a folder, a file, a glob of files or a hub id (owner/name).

    Several splits become one table with the column `split`. What cannot be read goes into `Rows.unread`; with `strict`
    it ends the reading. `exclude` are patterns of names in a folder that are left out. `cache` is the folder of the
    copies of a single shard or Parquet file; None is the usual one.

    Raises:
        DataError: if the source does not exist, cannot be read, or has no rows or no column of pictures.
    """
    unread = Unread(escaped(source), strict)
    path = Path(from_home(source)).absolute()  # the pictures are still found if the working directory changes
    if path.is_dir():
        dataset, base = load_folder(source, path, unread, exclude, image_column), path
    elif path.is_file():
        dataset, base = load_files(source, path.parent, [path.name], unread, cache), path.parent
    elif glob.has_magic(source):
        files = [name for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not files:
            raise DataError(f"{source}: no file matches")
        base = Path(os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files]))
        dataset = load_files(source, base, [os.path.relpath(name, base) for name in files], unread)
    elif HUB_ID.fullmatch(source) and path.suffix.lower() not in BUILDERS:
        dataset, base = load_from_hub(source), Path()
    else:
        what = "not a file or folder, but a pipe, socket or device" if path.exists() else "no such file or folder"
        raise DataError(f"{unread.origin}: {what}")
    return _separate(dataset, base, image_column, unread, in_files=base != Path() and not path.is_dir())


def _separate(dataset: "Dataset", base: Path, wanted: str | None, unread: Unread, in_files: bool) -> Rows:
    """Separate the column of undecoded pictures from the other columns, and flatten nested ones.

    `in_files` says that a column of text has the paths of picture files as a user wrote them.
    """
    import pyarrow as pa
    from datasets import Image

    if len(dataset) == 0:
        raise DataError("; ".join([f"{unread.origin}: has no rows", *unread.lines]))
    given = set(dataset.column_names)
    dataset = _unnested(dataset)
    column = _image_column(dataset, wanted, base if in_files else None, unread)
    if isinstance(dataset.features[column], Image):
        dataset = dataset.cast_column(column, Image(decode=False))
    images = dataset.select_columns([column])
    if in_files and _is_string(dataset.features.arrow_schema.field(column).type):
        images = with_found_pictures(images, base, unread)
    schema = dataset.features.arrow_schema
    others = [field.name for field in schema if not _is_binary(field.type) and field.name != "__url__"]
    text = dataset.select_columns(others).flatten()
    table: pa.Table = text.with_format("arrow")[:]  # pyright: ignore[reportAssignmentType]
    short_names = [name if name in given else name.rsplit(".", 1)[-1] for name in table.column_names]
    names = [
        short if short_names.count(short) == 1 else name
        for short, name in zip(short_names, table.column_names, strict=True)
    ]
    return Rows(unread.origin, table.rename_columns(names), images, column, base, unread)


def _unnested(dataset: "Dataset") -> "Dataset":
    """The data set with each object around a picture, such as data: {image, caption}, as columns of its own."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    def has_pictures_inside(kind: "pa.DataType") -> bool:
        return pa.types.is_struct(kind) and _is_binary(kind) and all(part.name != "bytes" for part in kind.fields)

    while any(has_pictures_inside(field.type) for field in dataset.features.arrow_schema):
        table: pa.Table = dataset.with_format("arrow")[:]  # pyright: ignore[reportAssignmentType]
        columns = dict[str, pa.ChunkedArray]()
        for field, column in zip(table.schema, table.columns, strict=True):
            if has_pictures_inside(field.type):
                parts = [part.name for part in field.type.fields]
                columns |= {f"{field.name}.{part}": cells for part, cells in zip(parts, column.flatten(), strict=True)}
            else:
                columns[field.name] = column
        dataset = Dataset(InMemoryTable(pa.table(columns)))
    return dataset


def _image_column(dataset: "Dataset", wanted: str | None, base: Path | None, unread: Unread) -> str:
    """The column of pictures; below `base`, if given, one of file names may be known by its cells."""
    from datasets import Image

    source, columns = unread.origin, dataset.column_names
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{unread.origin}: no column {wanted}; there are {', '.join(columns)}")
        return wanted
    schema = dataset.features.arrow_schema
    pictures = [name for name in columns if isinstance(dataset.features[name], Image)]
    binary = [name for name in columns if _is_binary(schema.field(name).type)]
    paths = [name for name in usual_columns(PATH_COLUMNS, columns) if _is_string(schema.field(name).type)]
    found = pictures or binary or paths[:1]
    if not found and base is not None:
        names = PictureNames.below(base)
        if by_cells := naming_column(first_rows(dataset), lambda cell: names.find("", cell) is not None):
            unread.note(column_note(Path(source).name, by_cells))
            return by_cells
    if not found:
        listed = ", ".join(columns)
        raise DataError(f"{source}: no column holds pictures; there are {listed}: name theirs with --image-column")
    if len(found) > 1 and "image" not in found:
        found = [name for name in found if _begins_with_a_picture(dataset, name)] or found
    if len(found) > 1 and "image" not in found:
        several = ", ".join(found)
        raise DataError(f"{source}: several columns hold pictures ({several}); name one of them with --image-column")
    chosen = "image" if "image" in found else found[0]
    if others := [name for name in (*pictures, *binary) if name != chosen]:
        unread.note(f"reads the files in the column {chosen}, and not those in {', '.join(dict.fromkeys(others))}")
    return chosen


def _begins_with_a_picture(dataset: "Dataset", column: str) -> bool:
    """Whether the first file in a column is a picture by its content."""
    from datasets import Image

    if isinstance(dataset.features[column], Image):
        return True
    for cell in dataset.select_columns([column])[:LOOKED_AT][column]:
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data:
            return readable_format(data[:HEAD]) is not None
    return False


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_is_binary(kind.field(index).type) for index in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_string(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
