"""Reads lists of URLs with captions (CSV, TSV, JSONL or Parquet), row by row."""

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from codebrush.data.sources.column_names import URL_CAPTION_COLUMNS, URL_COLUMNS
from codebrush.data.sources.delimited import read_records
from codebrush.data.sources.text_files import NOT_TEXT
from codebrush.errors import DataError, first_line

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_NAMED = 20  # columns named in a message


class UrlRow(NamedTuple):
    """One row of a list; a missing URL or caption is ""."""

    url: str
    caption: str


def read_list(path: str | Path, url_column: str | None = None, caption_column: str | None = None) -> Iterator[UrlRow]:
    """Read the rows of a list, a bounded number of them in memory.

    Without `url_column` and `caption_column` the first columns of the usual names are taken. A JSONL list is read to
    its end to find them, since any row may have other keys. A line that is not a JSON object, or a row of a CSV file
    that cannot be read, gives an empty row, so that the rows after it keep their numbers.

    Raises:
        DataError: if the list cannot be read or has no such columns.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise DataError(f"{path}: not a list of URLs; give a {', '.join(KINDS)} file")
    rows = {".jsonl": _json_lines, ".parquet": _parquet_rows}.get(kind, _csv_rows)
    try:
        for row in rows(path, url_column, caption_column):
            yield UrlRow(*(_clean(cell) for cell in row))
    except ValueError as error:
        raise DataError(f"{path}: {NOT_TEXT if isinstance(error, UnicodeDecodeError) else error}") from error
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _clean(cell: Any) -> str:
    """Text that can be written as UTF-8: JSON may hold half a surrogate pair where a caption was cut."""
    return cell.strip().encode("utf-8", "replace").decode() if isinstance(cell, str) else ""


def _csv_rows(path: Path, url_column: str | None, caption_column: str | None) -> Iterator[tuple[Any, Any]]:
    table = read_records(path)
    url, caption = _columns(path, table.names, url_column, caption_column)
    for row in table.rows:
        cells = {} if row.problem else row.cells
        yield cells.get(url), cells.get(caption)


def _json_lines(path: Path, url_column: str | None, caption_column: str | None) -> Iterator[tuple[Any, Any]]:
    url = caption = None
    names: dict[str, None] | None = None  # of columns, for the message
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                yield None, None
                continue
            if url is None or caption is None:
                url = _found(row, url_column, URL_COLUMNS) if url is None else url
                caption = _found(row, caption_column, URL_CAPTION_COLUMNS) if caption is None else caption
                names = names or {}
                names.update(dict.fromkeys(islice(row, max(MAX_NAMED - len(names), 0))))
                names.update(dict.fromkeys(name for name in (url, caption) if name is not None))
            yield row.get(url), row.get(caption)
    if names is not None:
        _columns(path, names, url_column, caption_column)


def _parquet_rows(path: Path, url_column: str | None, caption_column: str | None) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = _columns(path, file.schema_arrow.names, url_column, caption_column)
            for batch in file.iter_batches(10_000, columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error


def _columns(path: Path, names: Collection[str], url: str | None, caption: str | None) -> tuple[str, str]:
    found_url, found_caption = _found(names, url, URL_COLUMNS), _found(names, caption, URL_CAPTION_COLUMNS)
    if found_url is not None and found_caption is not None:
        return found_url, found_caption
    missing = {}  # flag -> the column it should name
    if found_url is None:
        missing["--url-column"] = url or URL_COLUMNS[0]
    if found_caption is None:
        missing["--caption-column"] = caption or URL_CAPTION_COLUMNS[0]
    columns, flags = " and ".join(missing.values()), " and one with ".join(missing)
    raise DataError(f"{path}: no column {columns}; name one with {flags}: {', '.join(names) or 'it has none'}")


def _found(names: Collection[str], given: str | None, usual: Sequence[str]) -> str | None:
    """The given column, or the first of the usual ones; None if there is no such column."""
    wanted = usual if given is None else (given,)
    return next((name for name in wanted if name in names), None)
