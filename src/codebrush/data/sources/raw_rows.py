"""Collects the rows of files in the Arrow cache on disk, and with them what of the files cannot be read.

A reader yields rows of data, and in their place what `problem` and `count` make or a `note`. These lie in the cache
too, so that they are reported again when a file is opened again and taken from the cache.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.decoding.picture_formats import READ
from codebrush.data.sources.unread import Unread
from codebrush.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset

SAID = ("problem", "note", "kind")  # columns that say what cannot be read
RowReader = Callable[[Sequence[tuple[str, str, int, int]]], Iterator[dict[str, Any]]]


def cached_rows(
    read: RowReader, files: Sequence[tuple[Path, str]], columns: Mapping[str, Any], unread: Unread
) -> "Dataset":
    """The rows that `read` yields for `files`, each with the name of its split, in `columns` (name -> feature).

    Columns that a row lacks are null. What the rows of problems, notes and kinds say goes into `unread`. Raises what
    `datasets` raises.
    """
    from datasets import Dataset, Features, Value

    features = Features({**columns, **dict.fromkeys(SAID, Value("string"))})
    # `datasets` keeps a copy for each set of arguments. With these among them it does not reuse that of an older file
    # of the same name, nor what another version has read, or this one before a package for photos was installed.
    facts = [(str(file), split, file.stat().st_size, file.stat().st_mtime_ns) for file, split in files]
    reader = (read, __version__, READ)
    given = {"reader": reader, "files": facts, "empty": dict.fromkeys(features)}  # `datasets` allows one list
    dataset = Dataset.from_generator(_whole_rows, features=features, gen_kwargs=given)
    assert isinstance(dataset, Dataset)
    return _without_problems(dataset, unread)


def _whole_rows(
    reader: tuple[RowReader, *tuple[Any, ...]],
    files: Sequence[tuple[str, str, int, int]],
    empty: Mapping[str, None],
) -> Iterator[dict[str, Any]]:
    for row in reader[0](files):
        yield {**empty, **row}


def _without_problems(dataset: "Dataset", unread: Unread) -> "Dataset":
    """The rows that hold data, without the columns `problem`, `note` and `kind` of `problem`, notes and `count`.

    What those columns say goes into `unread`.
    """
    columns = {name: dataset.data.column(name) for name in SAID}
    said = {name: column.drop_null().to_pylist() for name, column in columns.items()}
    for note in said["note"]:
        unread.note(note)
    for kind in said["kind"]:
        unread.count(kind)
    for each in said["problem"]:
        unread.name(*json.loads(each))
    data = dataset.remove_columns([*columns])
    if not any(said.values()):
        return data
    empty = zip(*(column.is_null().to_pylist() for column in columns.values()), strict=True)
    return data.select([index for index, row in enumerate(empty) if all(row)])


def problem(item: str, reason: str) -> dict[str, str]:
    """A row that names an item that cannot be read, for `_without_problems`."""
    return {"problem": json.dumps([item, reason])}


def count(kind: str) -> dict[str, str]:
    """A row that counts an item of a kind that is not read, for `_without_problems`."""
    return {"kind": kind}
