"""Collects the rows of files in the Arrow cache on disk, and with them what of the files cannot be read.

A reader yields rows of data, and rows that say what cannot be read (`problem`, `count`, or {"note": text}).
Such rows are cached too, so that they are reported again when an unchanged file is taken from the cache.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.decoding.picture_formats import READ
from codebrush.data.sources.unread import Unread
from codebrush.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset

REPORTED = ("problem", "note", "kind")  # columns of the rows that say what cannot be read
RowReader = Callable[[Iterable[tuple[str, str]]], Iterator[dict[str, Any]]]  # reads (path, split) pairs


def cached_rows(
    read: RowReader,
    files: Sequence[tuple[Path, str]],
    columns: Mapping[str, Any],
    unread: Unread,
    cache: Path | None = None,
) -> "Dataset":
    """The rows that `read` yields for `files`, each with the name of its split, in `columns` (name -> feature).

    Columns that a row lacks are null. What cannot be read goes into `unread`. `cache` is the folder of the copy on
    disk; None is the usual one. Raises what `datasets` raises.
    """
    from datasets import Dataset, Features, Value

    features = Features({**columns, **dict.fromkeys(REPORTED, Value("string"))})
    # `datasets` keeps a copy for each set of arguments. With these among them it does not reuse that of an older file
    # of the same name, nor what another version has read, or this one before a package for photos was installed.
    states = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file, _ in files)
    given = {
        "read": read,
        "files": tuple((str(file), split) for file, split in files),
        "empty": dict.fromkeys(features),
        "state": (__version__, READ, states),
    }
    place: Any = None if cache is None else str(cache)
    with _without_tqdm_monitor():
        dataset = Dataset.from_generator(_whole_rows, features=features, gen_kwargs=given, cache_dir=place)
    assert isinstance(dataset, Dataset)
    return _rows_of_data(dataset, unread)


@contextmanager
def _without_tqdm_monitor() -> Iterator[None]:
    """Keep tqdm, with which `datasets` reads, from starting a thread that watches its bars: where there is no memory
    for that thread, Python waits for it for ever."""
    from datasets.utils.tqdm import tqdm

    usual, tqdm.monitor_interval = tqdm.monitor_interval, 0
    try:
        yield
    finally:
        tqdm.monitor_interval = usual


def _whole_rows(
    read: RowReader, files: Sequence[tuple[str, str]], empty: Mapping[str, None], state: Any
) -> Iterator[dict[str, Any]]:
    """The rows of `files`, each with all columns. `state` only tells `datasets` whether its copy is still good."""
    for row in read(files):
        yield {**empty, **row}


def _rows_of_data(dataset: "Dataset", unread: Unread) -> "Dataset":
    """The rows of data, without the columns `REPORTED`; what the other rows say goes into `unread`."""
    columns = {name: dataset.data.column(name) for name in REPORTED}
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
    """A row that names an item that cannot be read."""
    return {"problem": json.dumps([item, reason])}


def count(kind: str) -> dict[str, str]:
    """A row that counts an item of a kind that is not read."""
    return {"kind": kind}
