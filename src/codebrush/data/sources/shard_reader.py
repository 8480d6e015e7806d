"""Reads WebDataset tar shards into a table with one row a sample, pictures undecoded.

In a shard the files of a sample are adjacent and share their name up to the first dot: 0001.jpg, 0001.txt, 0001.json.
Samples may have pictures of different kinds, and not all of these files. They are copied from the tar to the Arrow
cache on disk, with a bounded number in memory.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.images import EXTENSIONS
from codebrush.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

TEXT_FIELDS = ("txt", "caption", "cls")
OWN_FIELDS = ("image", "__key__")  # keys of JSON files do not replace these
BATCH = 1_000  # JSON objects in memory at once


class _MisfitError(Exception):
    """The cells of a column do not fit its type."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def read_shards(files: Sequence[tuple[Path, str]]) -> "Dataset":
    """Read the samples of `files`, each a shard with the name of its split ("" for none).

    Columns: `image`, `__key__`, and as far as they occur those of `TEXT_FIELDS`, `split` and the keys of the JSON
    files. Raises what `tarfile` and `datasets` raise.
    """
    from datasets import Dataset, Features, Image, Value, concatenate_datasets

    names = ("__key__", "split", "json", *TEXT_FIELDS)
    features = Features({"image": Image(decode=False), **{name: Value("string") for name in names}})
    # With size and time among the arguments, `datasets` does not reuse its copy of an older shard of the same name.
    facts = [(str(file), split, file.stat().st_size, file.stat().st_mtime_ns) for file, split in files]
    dataset = Dataset.from_generator(_samples, features=features, gen_kwargs={"shards": facts})
    assert isinstance(dataset, Dataset)
    empty = {name for name in (*TEXT_FIELDS, "split", "json") if dataset.data.column(name).null_count == len(dataset)}
    described = None if "json" in empty else _described(dataset.select_columns(["__key__", "json"]))
    replaced = set() if described is None else set(described.column_names)
    dataset = dataset.remove_columns([name for name in names if name in {*empty, *replaced, "json"}])
    return dataset if described is None else concatenate_datasets([dataset, described], axis=1)


def _samples(shards: Iterable[tuple[str, str, int, int]]) -> Iterator[dict[str, Any]]:
    for path, split, _, _ in shards:
        with tarfile.open(path) as shard:
            for key, files in groupby(_files(shard), key=lambda member: _key(member.name)[0]):
                sample: dict[str, Any] = dict.fromkeys(("image", "json", *TEXT_FIELDS))
                for member in files:
                    _add(sample, member.name, shard.extractfile(member).read())  # pyright: ignore
                if any(value is not None for value in sample.values()):  # a file that belongs to no sample
                    yield {**sample, "__key__": key, "split": split or None}


def _files(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := shard.next()) is not None:
        shard.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps every member otherwise
        if member.isfile() and not _is_hidden(member.name):
            yield member


def _is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _key(name: str) -> tuple[str, str]:
    """The path up to the first dot of the file name, and the rest in lower case."""
    folder, base = posixpath.split(name)
    stem, _, field = base.partition(".")
    return posixpath.join(folder, stem), field.lower()


def _add(sample: dict[str, Any], name: str, data: bytes) -> None:
    field = _key(name)[1]
    if f".{field}" in EXTENSIONS:
        sample["image"] = {"bytes": data, "path": name}
    elif field in ("json", *TEXT_FIELDS):
        sample[field] = data.decode("utf-8-sig", errors="replace").strip()


def _described(texts: "Dataset") -> "Dataset | None":
    """The JSON objects as columns; a column of several types becomes text. None if all objects are empty."""
    import pyarrow as pa
    from datasets import Features

    kinds = _kinds(texts)
    while kinds:
        schema = pa.schema(list(kinds.items()))
        try:
            return texts.map(
                _typed,
                batched=True,
                batch_size=BATCH,
                features=Features.from_arrow_schema(schema),
                fn_kwargs={"schema": schema},
            )
        except _MisfitError as misfit:
            kinds[misfit.column] = pa.string()
    return None


def _kinds(texts: "Dataset") -> dict[str, "pa.DataType"]:
    """The keys of the JSON objects, with the Arrow types of their values."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {}
    for rows in texts.iter(BATCH):
        objects = _objects(rows)
        for name in dict.fromkeys(name for row in objects for name in row):
            if name not in OWN_FIELDS:
                kinds[name] = _kind(kinds.get(name, pa.null()), [row.get(name) for row in objects])
    return kinds


def _kind(known: "pa.DataType", cells: list[Any]) -> "pa.DataType":
    """The common type of these cells and of earlier ones of the type `known`; text if there is none."""
    import pyarrow as pa

    if pa.types.is_string(known):
        return known
    try:
        schemas = [pa.schema([("cells", kind)]) for kind in (known, pa.array(cells).type)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.string()


def _typed(rows: Any, schema: "pa.Schema") -> "pa.Table":
    """The JSON objects of `rows` as the columns of `schema`. Raises _MisfitError if a cell does not fit."""
    import pyarrow as pa

    objects = _objects(rows)
    columns = []
    for field in schema:
        cells = [row.get(field.name) for row in objects]
        if pa.types.is_string(field.type):
            cells = [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]
        try:
            columns.append(pa.array(cells, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:  # like 2**60 + 1 among floats
            raise _MisfitError(field.name) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _objects(rows: Any) -> list[dict[str, Any]]:
    return [_object(key, text) if text else {} for key, text in zip(rows["__key__"], rows["json"], strict=True)]


def _object(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{key}.json in the shard is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}
