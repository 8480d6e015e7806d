"""Reads CSV, TSV and JSONL tables row by row: a row that cannot be read costs itself, and is named by its line.

The rows are copied to the Arrow cache on disk, with a bounded number in memory.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.sources.cached_rows import cached_rows, problem
from codebrush.data.sources.column_names import PATH_COLUMNS, usual_columns
from codebrush.data.sources.delimited import read_records
from codebrush.data.sources.json_columns import described, read_object
from codebrush.data.sources.text_files import BROKEN, lines_of
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


def first_paths(path: Path, most: int) -> Iterator[Any]:
    """The cells in the column of file names (`PATH_COLUMNS`) of the first `most` rows, read as they are taken.

    Raises:
        OSError: if the file cannot be read.
        ValueError: with the reason, if none of these rows can be read.
    """
    if path.suffix.lower() in DELIMITED and not usual_columns(PATH_COLUMNS, read_records(path).names):
        return
    whole, reason = False, ""
    for row in islice(_rows([(str(path), "")]), most):
        if "problem" in row:
            reason = reason or json.loads(row["problem"])[1]
        elif "json" in row:
            whole, cells = True, json.loads(row["json"])
            yield from (cells[column] for column in usual_columns(PATH_COLUMNS, list(cells))[:1])
    if reason and not whole:
        raise ValueError(reason)


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
                raise ValueError("not UTF-8 text")
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
