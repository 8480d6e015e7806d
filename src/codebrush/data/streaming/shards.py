"""Finds the shards of a source, on disk or behind an address that `fsspec` knows, and counts their rows."""

import errno
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from codebrush.data.decoding.picture_formats import EXTENSIONS
from codebrush.data.sources.folder_files import files_in
from codebrush.data.sources.shard_reader import PICTURES, first_key, is_hidden
from codebrush.data.sources.tables import SPLIT_WORD
from codebrush.data.sources.tar_files import DAMAGED, open_tar
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, first_line, without_secrets
from codebrush.files import UNUSABLE, from_home, write_errors, write_json

KINDS = (".tar", ".parquet")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # shard-{00000..00099}.tar, as in the shell
ASKED_AT_ONCE = 16  # requests for the sizes and footers of shards far away
TRIES = 3  # to fetch a shard, or to count its rows, far away
T = TypeVar("T")


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
    img2dataset writes them, and are taken alone. `exclude` are patterns of names in a folder, or at an address, that
    are left out.

    Raises:
        DataError: if an address cannot be reached, has no shards, or there are none of the split.
    """
    found = _remote_shards(source, exclude) if is_remote(source) else _local_shards(source, exclude)
    if not found:
        return None
    tars = [shard for shard in found if shard.address.endswith(".tar")]
    shards = sorted(tars or found, key=lambda shard: shard.address)
    named = None if split is None else named_for_split(source, shards, split)
    return shards if named is None else named


def named_for_split(source: str, shards: Sequence[Shard], split: str) -> list[Shard] | None:
    """Those of the shards of `source` whose names say `split`; None if not every name says a split.

    Raises:
        DataError: if no name says this one.
    """
    words = [SPLIT_WORD.search(shard.address.rpartition("/")[2]) for shard in shards]
    if None in words:
        return None
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


def _remote_shards(source: str, exclude: Sequence[str]) -> list[Shard]:
    import fsspec

    with reachable(source):
        files, _ = fsspec.core.url_to_fs(source)
        found: list[Shard] = []
        for name in _ranges(files._strip_protocol(source)):
            if "*" in name:
                root, listed = name.partition("*")[0].rpartition("/")[0], files.glob(name)
            elif name.endswith(KINDS):
                root, listed = name.rpartition("/")[0], [name]
            else:
                root, listed = name, files.find(name)
            names = [str(each) for each in listed if str(each).endswith(KINDS)]
            names = [each for each in names if not _is_excluded(each.removeprefix(root).lstrip("/"), exclude)]
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                infos = pool.map(files.info, names)
                found += [
                    Shard(files.unstrip_protocol(name), int(info.get("size") or 0))
                    for name, info in zip(names, infos, strict=True)
                ]
    if not found:
        left = " left by exclude" if exclude else ""
        raise DataError(f"{source}: there are no {' or '.join(KINDS)} files{left}")
    return found


def _is_excluded(relative: str, exclude: Sequence[str]) -> bool:
    """Whether a pattern is that of a file or of a folder above it, by its name or path, as in `files_in`."""
    parts = relative.split("/")
    names = {*parts, *("/".join(parts[:end]) for end in range(1, len(parts) + 1))}
    return any(fnmatch(name, pattern) for name in names for pattern in exclude)


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
        raise DataError(f"{address}: cannot be read: {first_line(error)}") from error


class FetchError(DataError):
    """A shard cannot be read now, for a reason that lies in a server or in this machine and not in the shard."""


def tried(address: str, fetch: Callable[[], T]) -> T:
    """What `fetch` reads of a shard, far away after some tries.

    Raises:
        FetchError: if the server or this machine fails.
        DataError: if the shard is damaged.
    """
    for left in reversed(range(TRIES if is_remote(address) else 1)):
        try:
            with reachable(address):
                return fetch()
        except DataError as error:
            damaged = _is_damage(error) if is_remote(address) else fault_of_machine(error) is None
            if damaged:
                raise
            if not left:
                tries = f"; tried {TRIES} times" if is_remote(address) else ""
                raise FetchError(f"{error}{tries}: see to it, then go on with --resume") from error
    raise AssertionError


def fault_of_machine(error: BaseException) -> OSError | None:
    """The error of the operating system that an error comes from, such as a full disk; None for what a shard holds."""
    content = (None, errno.EINVAL)  # the numbers of those that libraries raise for damaged content
    found = (each for each in _causes(error) if isinstance(each, OSError) and each.errno not in content)
    return next(found, None)


def _is_damage(error: BaseException) -> bool:
    """Whether what was read far away is damaged: all other errors are of the server or the way there."""
    import pyarrow as pa

    return any(isinstance(each, (*DAMAGED, pa.ArrowInvalid)) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def count_rows(shards: Sequence[Shard], cache: Path, key: str, count: Callable[[Shard], int]) -> list[int | str]:
    """The rows of each shard by `count`, kept in `cache` for other runs with the same shards and `key`; of a shard that
    is damaged the reason, which is not kept.

    Raises:
        FetchError: if one cannot be read now; what was counted so far is kept.
    """
    named = json.dumps([key, [[shard.address, shard.size, _changed(shard)] for shard in shards]])
    path = cache / f"shards-{hashlib.sha256(named.encode()).hexdigest()[:16]}.json"

    def fill(number: int) -> None:
        try:
            rows[number] = count(shards[number])
        except FetchError:
            raise
        except DataError as error:
            rows[number] = str(error).removeprefix(f"{without_secrets(shards[number].address)}: ")

    rows = _kept_rows(path, len(shards))
    if "" not in rows:
        return rows
    with write_errors(f"the numbers of rows in {cache}"):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # of several processes one counts
            rows = _kept_rows(path, len(shards))
            open_ones = [number for number, row in enumerate(rows) if row == ""]
            try:
                with ThreadPoolExecutor(ASKED_AT_ONCE if is_remote(shards[0].address) else 1) as pool:
                    for _ in pool.map(fill, open_ones):
                        pass
            finally:
                if any(isinstance(rows[number], int) for number in open_ones):
                    write_json(path, {"rows": [row if isinstance(row, int) else "" for row in rows]})
    return rows


def _kept_rows(path: Path, count: int) -> list[int | str]:
    """The numbers of rows in a file, "" for those that are not known."""
    with suppress(*UNUSABLE):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if len(rows) == count:
            return [row if isinstance(row, int) else "" for row in rows]
    return ["" for _ in range(count)]


def _changed(shard: Shard) -> int:
    return 0 if is_remote(shard.address) else os.stat(shard.address).st_mtime_ns


def rows_in(shard: Shard) -> int:
    """The rows of a shard, by the footer of a Parquet file or the headers of a tar, with all that have no caption.

    Raises:
        DataError: if it cannot be read.
    """
    import fsspec
    import pyarrow.parquet as pq

    with reachable(shard.address):
        files, name = fsspec.core.url_to_fs(shard.address)
        if shard.address.endswith(".parquet"):
            with files.open(name, "rb") as file:
                return pq.ParquetFile(file).metadata.num_rows

        def count(**how: Any) -> int:
            with files.open(name, "rb", **how) as file:
                names = _member_names(file, is_remote(shard.address))
                return sum(_rows_of_sample(sample) for _, sample in groupby(names, key=first_key))

        try:
            return count()
        except ValueError:  # of a web server that gives no parts of files: the whole one is read while it comes
            if "http" not in files.protocol:
                raise
            return count(block_size=0)


def _member_names(file: Any, remote: bool) -> Iterator[str]:
    """The names of the files in a tar; far away it is read through, since each jump would be a request."""
    with open_tar(fileobj=file, mode="r|*" if remote else "r:*") as shard:
        while (member := shard.next()) is not None:
            shard.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps every member otherwise
            if member.isfile() and not is_hidden(member.name):
                yield member.name


def _rows_of_sample(names: Iterator[str]) -> int:
    return max(1, sum(name.rpartition(".")[2].lower() in PICTURES for name in names))
