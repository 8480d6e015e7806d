"""Loads Parquet, CSV, TSV and JSONL files, WebDataset shards and hub data sets as one table each.

Everything goes through Hugging Face `datasets`, whose Arrow cache is memory-mapped: a collection larger than memory
opens as fast as a small one.
"""

import errno
import glob
import json
import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.sources.shard_reader import read_shards
from codebrush.data.sources.table_reader import DELIMITED, JSON_LINES, read_tables
from codebrush.data.sources.tar_files import DAMAGED
from codebrush.data.sources.text_files import is_tabbed
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, first_line, lacks_memory
from codebrush.files import UNWRITABLE

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    **dict.fromkeys(DELIMITED, "table"),
    **dict.fromkeys(JSON_LINES, "table"),
}
HUB_REMEDY = "correct the name, or set HF_HUB_OFFLINE=1 to use an earlier download"
LIBRARIES = ("datasets", "fsspec", "httpx", "huggingface_hub", "pyarrow")  # what reads sources, and raises of any kind
OWN = __name__.partition(".")[0]
SPLIT_WORD = re.compile(r"(?:^|[/_.-])(train|val|valid|validation|test)(?=[/_.-]|\d|$)")


def load_files(source: str, base: Path, names: Sequence[str], unread: Unread, cache: Path | None = None) -> "Dataset":
    """Load files of one kind, given relative to `base`; files named like splits ("train-0001.tar") are those splits.

    Files, shards and rows that cannot be read go into `unread`. `cache` is the folder of the copies of shards and
    Parquet files; None is the usual one.

    Raises:
        DataError: if none can be loaded; begins with `source`.
    """
    builders = {"table" if is_tabbed(base / name) else BUILDERS.get(Path(name).suffix.lower()) for name in names}
    builder = builders.pop()
    if builder is None or builders:
        raise DataError(f"{source}: not a data set; give {', '.join(BUILDERS)} files of one kind, or a folder")
    found = [SPLIT_WORD.search(name) for name in names]
    splits = [match[1] if match else "" for match in found]
    if "" in splits or len(names) == 1:
        splits = [""] * len(names)
    files = [base / name for name in names]
    with _one_line(source):
        pairs = list(zip(files, splits, strict=True))
        if builder == "webdataset":
            return read_shards(pairs, unread, cache)
        if builder == "table":
            return read_tables(pairs, unread)
        by_split: dict[str, list[str]] = {}
        whole = _whole(pairs, unread)
        for file, split in whole:
            by_split.setdefault(split or "train", []).append(glob.escape(str(file)))
        return _load_parquet(by_split, _not_held([file for file, _ in whole], unread), cache)


def _not_held(files: Sequence[Path], unread: Unread) -> set[str]:
    """The columns that `datasets` cannot hold: of such types as maps, or two of one name. They go into `unread`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    found = dict[str, str]()
    for schema in map(pq.read_schema, files):
        for field in schema:
            try:
                Features.from_arrow_schema(pa.schema([field]))
            except ValueError:
                found[field.name] = f"columns of the type {field.type} are not read"
            if schema.names.count(field.name) > 1:
                found[field.name] = "there are several columns of this name, which are not read"
    for name, reason in found.items():
        unread.name(f"{unread.origin}, {name}", reason)
    return set(found)


def _load_parquet(by_split: dict[str, list[str]], not_held: set[str], cache: Path | None) -> "Dataset":
    """Parquet files as one table, also if they have different columns, whose cells are null where a file has none."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    files = [(split, name) for split, names in by_split.items() for name in names]
    kept = {"cache_dir": cache and str(cache)}
    try:
        return _load("parquet", data_files=by_split, **kept, **_without(not_held, [name for _, name in files]))
    except DatasetGenerationError:
        if len(files) == 1:
            raise
    parts = [_load("parquet", data_files=name, **kept, **_without(not_held, [name])) for _, name in files]
    if list(by_split) != ["train"]:
        named = zip(parts, files, strict=True)
        parts = [part.add_column("split", [split] * len(part)) for part, (split, _) in named]  # pyright: ignore
    return datasets.concatenate_datasets(parts)


def _without(not_held: set[str], files: Sequence[str]) -> dict[str, Any]:
    """What tells `datasets` to leave these columns of (escaped) `files` out; nothing if there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    if not not_held:
        return {}
    schemas = [pq.read_schema(glob.glob(name)[0]) for name in files]
    fields = {field.name: field for schema in schemas for field in schema if field.name not in not_held}
    return {"columns": list(fields), "features": Features.from_arrow_schema(pa.schema(list(fields.values())))}


def _whole(pairs: Sequence[tuple[Path, str]], unread: Unread) -> list[tuple[Path, str]]:
    """The Parquet files whose footer can be read; the others go into `unread`, unless there is no other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = []
    for file, split in pairs:
        try:
            if pq.read_metadata(file).num_rows:
                kept.append((file, split))
            else:
                unread.name(str(file), "it has no rows")
        except (OSError, pa.ArrowInvalid) as error:
            if len(pairs) == 1:
                raise
            unread.name(str(file), f"not a whole Parquet file: {first_line(error)}")
    if not kept:
        raise DataError("it has no rows")
    return kept


def load_from_hub(source: str) -> "Dataset":
    """A data set of the Hugging Face hub as one table. Raises DataError if it cannot be loaded."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    if config.HF_HUB_OFFLINE:
        with _one_line(f"{source}: no such file or folder, and HF_HUB_OFFLINE is set"):
            return _load(source)
    try:  # asked first, because `datasets` tries an unreachable hub six times for half a minute
        HfApi().dataset_info(source, timeout=10)
    except (RepositoryNotFoundError, HFValidationError) as error:
        unknown = isinstance(error, RepositoryNotFoundError)
        reason = "no data set of this name, or a private one" if unknown else first_line(error)
        raise DataError(
            f"{source}: no such file or folder, and the hub has no such data set ({reason}); {HUB_REMEDY}"
        ) from error
    except (HTTPError, OSError, json.JSONDecodeError) as error:  # of its client, of the network, of what is no hub
        raise DataError(
            f"{source}: no such file or folder, and the hub does not answer ({first_line(error)}); {HUB_REMEDY}"
        ) from error
    with _one_line(source):
        return _load(source)


def _load(builder: str, **options: Any) -> "Dataset":
    """Load with `datasets` and join the splits, if there are several, with the column `split`."""
    import datasets

    splits = datasets.load_dataset(builder, **options)
    assert isinstance(splits, datasets.DatasetDict)
    parts = dict(splits)
    if list(parts) != ["train"] and not any("split" in part.column_names for part in parts.values()):
        for name, part in splits.items():
            parts[name] = part.add_column("split", [str(name)] * len(part))  # pyright: ignore[reportCallIssue]
    return datasets.concatenate_datasets(list(parts.values()))


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Silence `datasets`, and turn what it raises of a source into one DataError that begins with `source`. What is not
    the source's fault stays what it is, and too little memory is a MemoryError."""
    import datasets
    import pyarrow as pa
    from datasets import config
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs what it raises
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except Exception as error:
        causes: list[BaseException] = [error]
        while (cause := causes[0].__cause__) is not None:  # `datasets` wraps whatever the reading of rows raises
            causes.insert(0, cause)
        root = causes[0]
        if lacks_memory(root):
            raise MemoryError(first_line(root)) from error
        said_of_a_source = isinstance(root, (OSError, ValueError, DatasetsError, pa.ArrowException, *DAMAGED))
        if not (said_of_a_source or _is_of_a_library(causes)):
            raise
        if isinstance(root, OSError) and root.errno in (*UNWRITABLE, errno.ENOTDIR):
            raise DataError(
                f"{source}: cannot write the data cache in {config.HF_DATASETS_CACHE} ({root.strerror}); "
                "set HF_DATASETS_CACHE to a writable folder with free space"
            ) from error
        reason = first_line(root)
        if "corresponds to no data" in reason:
            reason = "it has no rows"
        raise DataError(f"{source}: cannot be read: {reason}") from error


def _is_of_a_library(causes: Sequence[BaseException]) -> bool:
    """Whether an error, given with its causes, the first of them first, arose in a library that reads sources, or in
    what that called, and not in code of this package, which such a library may have called."""
    for error in causes:
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            package = str(frame.f_globals.get("__name__")).partition(".")[0]
            if package in (*LIBRARIES, OWN):
                return package != OWN
    return False
