"""WebDataset tar shards in; a table with one row a sample, its picture undecoded, out.

In a shard the files of one sample lie together and share their name up to its first dot: 0001.jpg, 0001.txt,
0001.json. Samples may differ in the kind of their picture and in which of these files they have.
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
    from datasets import Dataset

TEXT_FIELDS = ("txt", "caption", "cls")
OWN_FIELDS = ("image", "__key__")  # a key of a JSON file does not replace these


def read_shards(files: Sequence[tuple[Path, str]]) -> "Dataset":
    """The samples of the shards, each shard given with its split ("" for none).

    Columns: `image`, `__key__`, those of `TEXT_FIELDS`, `split` and the keys of the JSON files that occur.
    Raises what `tarfile` and `datasets` raise.
    """
    from datasets import Dataset, Features, Image, Value

    names = ("__key__", "split", "json", *TEXT_FIELDS)
    features = Features({"image": Image(decode=False), **{name: Value("string") for name in names}})
    # The size and the time tell `datasets` that its copy of an earlier shard of the same name is stale.
    facts = [(str(file), split, file.stat().st_size, file.stat().st_mtime_ns) for file, split in files]
    dataset = Dataset.from_generator(_samples, features=features, gen_kwargs={"shards": facts})
    assert isinstance(dataset, Dataset)
    described = _columns(dataset["__key__"], dataset["json"])
    for name in (*TEXT_FIELDS, "split", "json"):
        if name == "json" or name in described or all(cell is None for cell in dataset[name]):
            dataset = dataset.remove_columns(name)
    for name, cells in described.items():
        dataset = dataset.add_column(name, cells)  # pyright: ignore[reportCallIssue]
    return dataset


def _samples(shards: Iterable[tuple[str, str, int, int]]) -> Iterator[dict[str, Any]]:
    for path, split, _, _ in shards:
        with tarfile.open(path) as shard:
            members = (member for member in shard if member.isfile() and not _is_hidden(member.name))
            for key, files in groupby(members, key=lambda member: _key(member.name)[0]):
                sample: dict[str, Any] = dict.fromkeys(("image", "json", *TEXT_FIELDS))
                for member in files:
                    _add(sample, member.name, shard.extractfile(member).read())  # pyright: ignore
                if any(value is not None for value in sample.values()):  # a stray file is no sample
                    yield {**sample, "__key__": key, "split": split or None}


def _is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _key(name: str) -> tuple[str, str]:
    """The name up to the first dot after its folder, and the rest, in lower case."""
    folder, base = posixpath.split(name)
    stem, _, field = base.partition(".")
    return posixpath.join(folder, stem), field.lower()


def _add(sample: dict[str, Any], name: str, data: bytes) -> None:
    field = _key(name)[1]
    if f".{field}" in EXTENSIONS:
        sample["image"] = {"bytes": data, "path": name}
    elif field in ("json", *TEXT_FIELDS):
        sample[field] = data.decode("utf-8-sig", errors="replace").strip()


def _columns(keys: Iterable[str], texts: Iterable[str | None]) -> dict[str, list[Any]]:
    """JSON objects as columns; a column whose cells are of several kinds becomes text."""
    rows = [_object(key, text) if text else {} for key, text in zip(keys, texts, strict=True)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _one_kind([row.get(name) for row in rows]) for name in names if name not in OWN_FIELDS}


def _object(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{key}.json in the shard is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _one_kind(cells: list[Any]) -> list[Any]:
    import pyarrow as pa

    try:
        pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]
    return cells
