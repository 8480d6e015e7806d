"""Finds the shards of a source, on disk or behind an address that `fsspec` knows, and counts their rows."""

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from codebrush.data.decoding.picture_formats import EXTENSIONS
from codebrush.data.sources.folder_files import files_in
from codebrush.data.sources.shard_reader import PICTURES, first_key, is_hidden
from codebrush.data.sources.tables import SPLIT_WORD
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError
from codebrush.files import from_home, made_once, write_json

KINDS = (".tar", ".parquet")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # shard-{00000..00099}.tar, as in the shell
ASKED_AT_ONCE = 16  # requests for the sizes and footers of shards far away


@dataclass(frozen=True)
class Shard:
    """A tar or Parquet file: its path or address, and its bytes (0 if a server does not say)."""

    address: str
    size: int


def is_remote(source: str) -> bool:
    """Whether a source is an address such as s3://bucket/folder and not a path."""
    return ADDRESS.match(source) is not None


def find_shards(source: str, split: str | None = None, exclude: Sequence[str] = ()) -> list[Shard] | None:
    """The shards of a source, sorted by name; None if it has other files than shards, or is none that can be found.

    A source is a folder, a file, a glob, or an address of these (s3://bucket/pets, https://host/pets-{000..099}.tar).
    Where names say the splits, only those of `split` are taken. Shards lie beside Parquet files without pictures as
    img2dataset writes them, and are taken alone.

    Raises:
        DataError: if an address cannot be reached, has no shards, or there are none of the split.
    """
    found = _remote_shards(source) if is_remote(source) else _local_shards(source, exclude)
    if not found:
        return None
    tars = [shard for shard in found if shard.address.endswith(".tar")]
    shards = sorted(tars or found, key=lambda shard: shard.address)
    words = [SPLIT_WORD.search(shard.address.rpartition("/")[2]) for shard in shards]
    if split is None or None in words:
        return shards
    kept = [shard for shard, word in zip(shards, words, strict=True) if word is not None and word[1] == split]
    if not kept:
        raise DataError(f"{source}: no shard of the split {split}, by their names")
    return kept


def _local_shards(source: str, exclude: Sequence[str]) -> list[Shard]:
    path = Path(from_home(source)).absolute()
    if path.is_dir():
        names = [path / name for name in files_in(path, Unread(source), exclude)]
        if any(name.suffix.lower() in EXTENSIONS for name in names):
            return []
        names = [name for name in names if name.suffix.lower() in KINDS]
    else:
        names = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
        names = [name for name in names if name.is_file()]
        if any(name.suffix.lower() not in KINDS for name in names):
            return []
    return [Shard(str(name), name.stat().st_size) for name in names]


def _remote_shards(source: str) -> list[Shard]:
    import fsspec

    with reachable(source):
        files, _ = fsspec.core.url_to_fs(source)
        found: list[Shard] = []
        for name in _ranges(files._strip_protocol(source)):
            if "*" in name:
                listed = files.glob(name)
            else:
                listed = [name] if name.endswith(KINDS) else files.find(name)
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                names = [str(each) for each in listed if str(each).endswith(KINDS)]
                infos = pool.map(files.info, names)
                found += [
                    Shard(files.unstrip_protocol(name), int(info.get("size") or 0))
                    for name, info in zip(names, infos, strict=True)
                ]
    if not found:
        raise DataError(f"{source}: there are no {' or '.join(KINDS)} files")
    return found


def _ranges(name: str) -> Iterator[str]:
    """a-{08..10}.tar -> a-08.tar, a-09.tar, a-10.tar."""
    match = RANGE.search(name)
    if match is None:
        yield name
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{name[: match.start()]}{number:0{len(first)}d}{name[match.end() :]}")


@contextmanager
def reachable(address: str) -> Iterator[None]:
    """Turn whatever a file system far away raises into one DataError that begins with `address`."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{address}: {' '.join(str(error).split())}") from error
    except FileNotFoundError as error:
        cause = error.__cause__  # of a server that cannot be reached, too
        reason = f"cannot be reached: {cause}" if cause is not None and str(cause) else "no such file or folder"
        raise DataError(f"{address}: {reason}") from error
    except Exception as error:  # each file system raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{address}: cannot be read: {reason}") from error


def count_rows(
    shards: Sequence[Shard], cache: Path, key: str, count: Callable[[Shard], int], unread: Unread
) -> dict[Shard, int]:
    """The rows of each shard by `count`, kept in `cache` for other runs with the same shards and `key`.

    Shards that cannot be read, and those without rows, go into `unread` and are left out.

    Raises:
        DataError: if none is left, or with `strict` one cannot be read.
    """
    named = json.dumps([key, [[shard.address, shard.size, _changed(shard)] for shard in shards]])
    path = cache / f"shards-{hashlib.sha256(named.encode()).hexdigest()[:16]}.json"

    def counted(shard: Shard) -> int | str:
        try:
            return count(shard)
        except DataError as error:
            return str(error)

    def make() -> None:
        with ThreadPoolExecutor(ASKED_AT_ONCE if is_remote(shards[0].address) else 1) as pool:
            write_json(path, {"rows": list(pool.map(counted, shards))})

    def read() -> list[Any]:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if len(rows) != len(shards):
            raise ValueError(f"{path} is of other shards")
        return rows

    rows = made_once(path.with_suffix(".lock"), f"the numbers of rows in {cache}", read, make)
    for shard, number in zip(shards, rows, strict=True):
        if not number or isinstance(number, str):
            reason = str(number or "it has no rows").removeprefix(f"{shard.address}: ")
            unread.name(shard.address, reason)
    kept = {shard: number for shard, number in zip(shards, rows, strict=True) if number and isinstance(number, int)}
    if not kept:
        raise DataError(f"{unread.origin}: none of its {len(shards)} shards has a row; {unread.lines[0]}")
    return kept


def _changed(shard: Shard) -> int:
    return 0 if is_remote(shard.address) else os.stat(shard.address).st_mtime_ns


def rows_in(shard: Shard) -> int:
    """The rows of a shard, by the footer of a Parquet file or the headers of a tar, with all that have no caption.

    Raises:
        DataError: if it cannot be read.
    """
    import fsspec
    import pyarrow.parquet as pq

    with reachable(shard.address), fsspec.open(shard.address, "rb") as file:
        if shard.address.endswith(".parquet"):
            return pq.ParquetFile(file).metadata.num_rows  # pyright: ignore[reportArgumentType]
        return sum(_rows_of_sample(names) for _, names in groupby(_member_names(file), key=first_key))


def _member_names(file: Any) -> Iterator[str]:
    """The names of the files in a tar; far away it is read through, since each jump would be a request."""
    is_local = isinstance(getattr(file, "f", file), Path) or hasattr(file, "fileno")
    with tarfile.open(fileobj=file, mode="r:*" if is_local else "r|*") as shard:
        while (member := shard.next()) is not None:
            shard.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps every member otherwise
            if member.isfile() and not is_hidden(member.name):
                yield member.name


def _rows_of_sample(names: Iterator[str]) -> int:
    return max(1, sum(name.rpartition(".")[2].lower() in PICTURES for name in names))
