"""Where a database is: in a folder, or at an address of object storage like s3://bucket/pictures.

A folder has a lock, which a writer holds for one batch at a time, and small files beside the table. Object storage has
neither: there LanceDB notices that two writers changed the same rows, and what belongs beside the table is a table too.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from codebrush.errors import CodebrushError, DataError
from codebrush.files import UNUSABLE, UNWRITABLE, cannot_write, write_json
from codebrush.optional import require
from codebrush.pack.pack import home
from codebrush.search.deferred_imports import deferred
from codebrush.search.messages import plain_reason

TABLE = "pictures"
TABLE_FOLDER = f"{TABLE}.lance"
VERSIONS_FOLDER = "_versions"  # in the table's
SAME_TIME = 2_000_000_000  # nanoseconds: no file system's clock is coarser
LOCK = ".codebrush.lock"
COLUMNS_FILE = "columns.json"  # see `Database.source_names`
COLUMNS_TABLE = "columns"
OTHER_TEXTS_FILE = "other_texts.safetensors"  # see `nearness`; made anew if it is missing
ADDRESS = re.compile(r"(s3|gs|az|abfss?)://[^/]+(/.*)?")
CONFLICT = re.compile(r"conflict|contention|incompatible with concurrent", re.I)
OF_STORAGE = re.compile(
    r"Generic (\{ store|\w+ error)|<Code>|credentials|RetryError|NoSuchBucket|AccessDenied|object_store", re.I
)
CLIENT = "lance_namespace_urllib3_client"  # for servers of tables; LanceDB imports it all and uses its models alone
Names = dict[str, list[str]]
Stamp = tuple[int, ...]  # of a file: which it is, and when it was written


class Place(Protocol):
    """What `Database` asks of the place where it is; str() of one is what a user calls it."""

    @property
    def address(self) -> str:
        """Where Lance finds the table of pictures."""
        ...

    @property
    def absolute(self) -> str:
        """What another process, with another working folder, calls it."""
        ...

    def connect(self) -> Any:
        """LanceDB's connection."""
        ...

    def has_table(self) -> bool:
        """Whether there is a database."""
        ...

    def stamp(self) -> Stamp | None:
        """What tells that the table has changed, faster than asking LanceDB for its version. None where nothing
        does, or the last change is so recent that the next may have the same time.
        """
        ...

    def stamp_of(self, version: int) -> Stamp | None:
        """What tells a version of the table from one with the same number of a table that was made again; None if
        nothing does."""
        ...

    def prepare(self) -> None:
        """Make the place for a new database. Raises DataError if something else is there."""
        ...

    def lock(self) -> AbstractContextManager[Any]:
        """What a writer holds meanwhile."""
        ...

    def source_names(self) -> Names:
        """See `Database.source_names`."""
        ...

    def store_source_names(self, names: Names, new: Mapping[str, str]) -> None:
        """Store all names, of which `new` were not known."""
        ...

    def cache_file(self) -> Path:
        """The file of what the texts of `nearness` reach."""
        ...

    def discard(self) -> None:
        """Delete the tables, and what belongs to them."""
        ...

    def fault(self, error: Exception) -> CodebrushError:
        """What a user is told about an error of LanceDB."""
        ...


def place_of(path: "str | Path | Place") -> Place:
    """The place that a user calls `path`."""
    if isinstance(path, Folder | Storage):
        return path
    # pathlib makes one slash of two
    text = re.sub(r"^(s3|gs|az|abfss?):/(?=[^/])", r"\1://", str(path))
    return Storage(text.rstrip("/")) if ADDRESS.fullmatch(text) else Folder(Path(text))


class Folder:
    """A folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def address(self) -> str:
        return str(self.path.absolute() / TABLE_FOLDER)

    @property
    def absolute(self) -> str:
        return str(self.path.absolute())

    def connect(self) -> Any:
        return _connect(self.path)

    def has_table(self) -> bool:
        table = self.path / TABLE_FOLDER
        if table.is_dir() and not _was_never_made(table):
            return True
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self} is a file, not a database: name a folder that codebrush index has made")
        return False

    def stamp(self) -> Stamp | None:
        with suppress(OSError):
            found = (self.path / TABLE_FOLDER / VERSIONS_FOLDER).stat()
            if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SAME_TIME:
                return found.st_ino, found.st_mtime_ns, found.st_ctime_ns
        return None

    def stamp_of(self, version: int) -> Stamp | None:
        for name in (f"{2**64 - 1 - version:020}", f"{version}"):  # Lance's two ways to name them
            with suppress(OSError):
                found = (self.path / TABLE_FOLDER / VERSIONS_FOLDER / f"{name}.manifest").stat()
                return found.st_ino, found.st_mtime_ns
        return None

    def prepare(self) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is a file: name a folder for the database")
        if path.is_dir() and not (path / TABLE_FOLDER).is_dir() and any(each.name != LOCK for each in path.iterdir()):
            raise DataError(f"{path} is not a database but holds other things: name a new folder for the database")
        path.mkdir(parents=True, exist_ok=True)

    def lock(self) -> AbstractContextManager[Any]:
        return self._lock

    def source_names(self) -> Names:
        with suppress(*UNUSABLE, AttributeError):
            stored = json.loads((self.path / COLUMNS_FILE).read_text(encoding="utf-8"))
            return {name: [str(column) for column in columns] for name, columns in stored.items()}
        return {}

    def store_source_names(self, names: Names, new: Mapping[str, str]) -> None:
        write_json(self.path / COLUMNS_FILE, names)

    def cache_file(self) -> Path:
        return self.path / OTHER_TEXTS_FILE

    def discard(self) -> None:
        shutil.rmtree(self.path / TABLE_FOLDER)
        with suppress(OSError):
            for name in (OTHER_TEXTS_FILE, COLUMNS_FILE):
                (self.path / name).unlink(missing_ok=True)
            (self.path / LOCK).unlink()
            self.path.rmdir()

    def fault(self, error: Exception) -> CodebrushError:
        reason = plain_reason(error)
        if getattr(error, "errno", None) in UNWRITABLE or any(os.strerror(code) in reason for code in UNWRITABLE):
            return cannot_write(self.path, reason)
        return DataError(f"{self} is damaged ({reason}): delete it, and index the pictures again")


def _was_never_made(table: Path) -> bool:
    """Whether a table's folder is what is left where making the table failed, as on a full disk: it has neither a
    version nor rows, and a table can be made in it."""
    return not any((table / VERSIONS_FOLDER).glob("*.manifest")) and not any((table / "data").glob("*"))


class Storage:
    """An address of object storage. The keys come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT ...)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __str__(self) -> str:
        return self.uri

    @property
    def address(self) -> str:
        return f"{self.uri}/{TABLE_FOLDER}"

    @property
    def absolute(self) -> str:
        return self.uri

    def connect(self) -> Any:
        return _connect(self.uri)

    def has_table(self) -> bool:
        return TABLE in self._tables()

    def _tables(self) -> list[str]:
        return list(self.connect().list_tables().tables)

    def stamp(self) -> Stamp | None:
        return None

    def stamp_of(self, version: int) -> Stamp | None:
        return None

    def prepare(self) -> None:
        """Nothing has to be made; whatever else lies under the address stays as it is."""

    def lock(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def source_names(self) -> Names:
        found: Names = {}
        if COLUMNS_TABLE in self._tables():
            for row in self.connect().open_table(COLUMNS_TABLE).to_arrow().to_pylist():
                found.setdefault(row["name"], []).append(row["column"])
        return found

    def store_source_names(self, names: Names, new: Mapping[str, str]) -> None:
        import pyarrow as pa

        schema = pa.schema([pa.field("name", pa.string()), pa.field("column", pa.string())])
        table = self.connect().create_table(COLUMNS_TABLE, schema=schema, exist_ok=True)
        rows = pa.table({"name": list(new), "column": list(new.values())}, schema=schema)
        table.merge_insert(["name", "column"]).when_not_matched_insert_all().execute(rows)

    def cache_file(self) -> Path:
        """A file of this machine, because the one for all would have to be fetched for each search."""
        folder = home() / "databases" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        with suppress(OSError):  # then what it would hold is computed anew each time
            folder.mkdir(parents=True, exist_ok=True)
        return folder / OTHER_TEXTS_FILE

    def discard(self) -> None:
        connection = self.connect()
        for name in (TABLE, COLUMNS_TABLE):
            if name in self._tables():
                connection.drop_table(name)

    def fault(self, error: Exception) -> CodebrushError:
        if CONFLICT.search(plain_reason(error)):
            return CodebrushError(f"another process wrote to {self} at the same time: run the command again")
        if not OF_STORAGE.search(str(error)):
            reason = plain_reason(error)
            return DataError(f"{self} is damaged ({reason}): delete it, and index the pictures again")
        return CodebrushError(f"cannot use {self}: {_storage_reason(str(error))}")


def check_installed() -> None:
    """Raises CodebrushError if LanceDB is not installed."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # what matters is raised too
    with deferred(CLIENT):
        require("lancedb", "search needs")


def _connect(where: str | Path) -> Any:
    check_installed()
    import lancedb

    return lancedb.connect(where, read_consistency_interval=timedelta(0))


def _storage_reason(text: str) -> str:
    """What the store answered, in one line, with what the user may look at."""
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text) for tag in ("Code", "Message"))
    if code is not None:
        said = code[1] if message is None else f"{message[1].rstrip('.').lower()} ({code[1]})"
        return f"{said}; check the address and the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "credentials" in text.lower():
        return "there are no keys for it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    known = re.search(r'message: \\?"([^"\\]+)', text) or re.search(r"Generic \w+ error: ([^,{]+)", text)
    said = f" ({known[1].strip().lower()})" if known else ""
    return f"it does not answer{said}; check the address, AWS_ENDPOINT, AWS_REGION and the network"
