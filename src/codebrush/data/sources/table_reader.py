"""Reads CSV, TSV and JSONL tables row by row: a row that cannot be read costs itself, and is named by its line.

The rows are copied to the Arrow cache on disk, with a bounded number in memory.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.sources.cached_rows import cached_rows, problem
from codebrush.data.sources.delimited import read_records
from codebrush.data.sources.json_columns import described, read_object
from codebrush.data.sources.text_files import BROKEN, NOT_TEXT, lines_of
from codebrush.data.sources.unread import Unread

if TYPE_CHECKING:
    from datasets import Dataset

DELIMITED = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")


def read_tables(files: Sequence[tuple[Path, str]], unread: Unread) -> "Dataset":
    """The rows of `files`, each a table with the name of its split ("" for none); unreadable rows go into `unread`.

    Cells of CSV and TSV files are texts, empty ones null. Raises what `datasets` raises.
    """
    from datasets import Value, concatenate_datasets

    dataset = cached_rows(_rows, files, {"json": Value("string"), "split": Value("string")}, unread)
    columns = described(dataset.select_columns(["json"]))
    splits = dataset.select_columns(["split"])
    if columns is None:
        return splits.select(())
    given = splits.data.column("split").null_count < len(splits.data) and "split" not in columns.column_names
    return concatenate_datasets([columns, splits], axis=1) if given else columns


def first_records(path: Path, most: int) -> Iterator[tuple[dict[str, Any], str]]:
    """The cells of the first `most` rows, read as they are taken, each with why it cannot be read or "".

    Such a row has what could be made out: of a line of JSON nothing. Raises OSError if the file cannot be read,
    ValueError if it is no text.
    """
    if path.suffix.lower() not in JSON_LINES:
        table = read_records(path)
        for record in islice(table.rows, most):
            yield {**dict.fromkeys(table.names), **record.cells}, record.problem
        return
    for row in islice(_json_rows(path), most):
        is_broken = "problem" in row
        yield ({}, json.loads(row["problem"])[1]) if is_broken else (json.loads(row["json"]), "")


def _rows(tables: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for path, split in tables:
        read = _json_rows if Path(path).suffix.lower() in JSON_LINES else _delimited_rows
        for row in read(Path(path)):
            yield {"split": split or None, **row}


def _json_rows(path: Path) -> Iterator[dict[str, str]]:
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            if BROKEN.search(line):
                raise ValueError(NOT_TEXT)
            yield {"json": json.dumps(read_object(line))}
        except ValueError as error:
            reason = "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            yield problem(f"{path}, line {number}", reason)


def _delimited_rows(path: Path) -> Iterator[dict[str, str]]:
    table = read_records(path)
    if table.note:
        yield {"note": table.note}
    for record in table.rows:
        if record.problem:
            yield problem(f"{path}, line {record.line}", record.problem)
        else:
            yield {"json": json.dumps(record.cells)}
