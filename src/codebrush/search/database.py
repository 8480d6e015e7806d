"""A database of embedded pictures: a LanceDB table in a folder or on object storage, with one error line for whatever
is wrong with it.

In a folder a writer holds the lock for one batch at a time, so that several processes can index at once. Readers need
no lock, because a commit leaves the files that they read in place.
"""

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.errors import CodebrushError, DataError, PackError
from codebrush.files import cannot_write
from codebrush.search.native_stderr import hold_panics
from codebrush.search.places import TABLE, Names, Place, check_installed, place_of
from codebrush.search.vector_index import FLAT, kind_of, update_index

if TYPE_CHECKING:
    import pyarrow as pa

    from codebrush.data.picture_fitting import Fit
    from codebrush.search.memory_index import MemoryIndexes

ABOUT = b"codebrush"  # key in the metadata of the table
FORMAT = 1
KEY = {"lance-schema:unenforced-primary-key": "true"}  # lets LanceDB notice that two writers add the same picture
FRAME = "frame_read"  # number of the frame or page of the file, from 0; the table has the column once there is one
WORDS_UPDATED = "the words of the captions were indexed anew, as text in Chinese, Japanese, Thai and others needs it"
WORDS = "icu/split"  # finds words by ICU's dictionaries where no blanks stand between them (Chinese, Thai, ...)
KEPT_VERSIONS = timedelta(minutes=10)  # how long a reader may take to read rows that were replaced meanwhile


@dataclass(frozen=True)
class Embedder:
    """Which CLIP made the embeddings of a database: the name of its pack, and the sha256 (hex) of its weights. `fit` is
    how pictures were fitted to what it reads; None, as in databases from before version 0.3, if as it was trained.
    """

    pack: str
    clip: str
    fit: "Fit | None" = None


class Database:
    """An open database; `open_database` and `create_database` return one.

    `table` is LanceDB's table, always at its newest version; `is_new` says that `create_database` has just made it.
    `memory` holds its embeddings in memory, for searches; None searches on disk alone.
    Every method raises DataError if the database is damaged and CodebrushError if it cannot be written.
    """

    is_new = False
    memory: "MemoryIndexes | None" = None

    def __init__(self, place: Place, table: Any, embedder: Embedder, quiet: bool = False) -> None:
        self.place, self.table, self.embedder, self.quiet = place, table, embedder, quiet

    @property
    def embed_dim(self) -> int:
        """E, the width of the embeddings."""
        return self.table.schema.field("embedding").type.list_size

    def open_table(self) -> Any:
        """LanceDB's table, opened once more."""
        return self.place.connect().open_table(TABLE)

    def count(self, where: str | None = None) -> int:
        """The number of pictures, or of those that meet the SQL condition `where`."""
        with self.guarded():
            return self.table.count_rows(where)

    def write(self, rows: "pa.Table") -> tuple[int, int]:
        """Add rows, or replace those with the same `path`, all or none; columns left out keep their values.

        Returns how many rows were added and how many replaced.
        """
        with self.guarded(), self.locked():
            merge = self.table.merge_insert("path").when_matched_update_all()
            if "embedding" in rows.column_names:
                merge = merge.when_not_matched_insert_all()
            done = merge.execute(rows)
            return done.num_inserted_rows, done.num_updated_rows

    def add_columns(self, fields: Iterable["pa.Field"]) -> None:
        """Add the columns that the table does not have yet, with null in the existing rows."""
        with self.guarded(), self.locked():
            new = [field for field in fields if field.name not in self.table.schema.names]
            if new:
                self.table.add_columns(new)

    def source_names(self) -> Names:
        """The columns that have another name in their sources: that name -> those of the columns."""
        with self.guarded():
            return self.place.source_names()

    def add_source_names(self, names: Mapping[str, str]) -> dict[str, str]:
        """Remember columns by their names in a source; returns those that were not known."""
        with self.guarded(), self.locked():
            known = self.place.source_names()
            new = {name: column for name, column in names.items() if column not in known.get(name, ())}
            for name, column in new.items():
                known.setdefault(name, []).append(column)
            if new:
                self.place.store_source_names(known, new)
        return new

    def delete(self, paths: list[str]) -> int:
        """Delete rows by their path; returns how many there were."""
        removed = 0
        with self.guarded(), self.locked():
            for start in range(0, len(paths), 500):
                removed += self.table.delete(is_in("path", paths[start : start + 500])).num_deleted_rows
        return removed

    def rows(self, columns: list[str], where: str | None = None) -> Iterator["pa.RecordBatch"]:
        """Yield the rows that meet the SQL condition `where`, in batches and in no particular order."""
        with self.guarded():
            query = self.table.search().select(columns)
            batches = iter((query.where(where) if where else query).to_batches())
        while True:
            with self.guarded():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def holds(self, file: Path) -> bool:
        """Whether `file` is one of the indexed pictures, by whatever path it is reached."""
        if not file.exists():
            return False
        names = {file.name, file.resolve().name}
        where = " OR ".join(f"ends_with(path, {quoted(os.sep + name)})" for name in names)
        paths = (path for part in self.rows(["path"], where) for path in part["path"].to_pylist())
        return any(os.path.exists(path) and os.path.samefile(path, file) for path in paths)

    def settle(self) -> bool:
        """Finish writing: make the vector index that so many rows should have (`vector_index`), merge small files,
        update the indices, and delete versions that no reader needs any more.

        Returns whether the recall of the vector index remains to be measured (`recall.tune`).
        """
        with self.guarded(), self.locked():
            unmeasured = update_index(self.table)
            self.table.optimize(cleanup_older_than=KEPT_VERSIONS)
        return unmeasured

    def update_words(self) -> bool:
        """Index the words of the captions anew if that was done between blanks alone, as before version 0.3; whether
        it was.
        """
        from lancedb.index import FTS

        def is_old(index: Any) -> bool:
            return dict(index.index_details or {}).get("base_tokenizer") != WORDS

        with self.guarded():
            if not any(is_old(index) for index in self.table.list_indices() if "caption" in index.columns):
                return False
            words = FTS(base_tokenizer=WORDS, remove_stop_words=False)
            with self.locked():
                self.table.create_index("caption", config=words, replace=True)
        return True

    def discard(self) -> None:
        """Delete a new database again, unless another process has written to it."""
        with self.guarded(), self.locked():
            if not self.is_new or self.table.count_rows():
                return
            self.place.discard()

    @property
    def has_vector_index(self) -> bool:
        """Whether searches first compare embeddings of fewer bits (see `settle`)."""
        return kind_of(self.table) != FLAT

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the write lock, if the place has one. The operating system releases that of a process that dies."""
        with self.place.lock():
            yield

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn whatever LanceDB raises into one line that names the database."""
        with _guarded(self.place, self.quiet):
            yield


def open_database(
    path: str | Path | Place,
    embedder: Embedder | None = None,
    quiet: bool = False,
    memory: "MemoryIndexes | None" = None,
) -> Database:
    """Open the database in the folder, or at the address, `path`; if `embedder` is given, its CLIP must have made it.

    `quiet` holds back what crashing threads of LanceDB print to stderr (see `native_stderr`); it is for command lines.
    With `memory`, which a program keeps for all that it searches, searches without a condition are made in memory once
    the embeddings have been read, in the background: four times as fast, and twice with thumbnails.

    Raises:
        DataError: if there is no database, or it is damaged.
        PackError: if another CLIP made it.
    """
    place = place_of(path)
    with _guarded(place, quiet):
        if not place.has_table():
            remedy = f"make one with codebrush index PICTURES --db {shlex.quote(str(place))}"
            raise DataError(f"there is no database in {place}: {remedy}")
        table = place.connect().open_table(TABLE)
        made_by = _read_embedder(place, table.schema)
    if embedder is not None and made_by.clip != embedder.clip:
        raise PackError(
            f"{place} was made with the CLIP of the pack '{made_by.pack}' ({made_by.clip[:8]}), which the pack "
            f"'{embedder.pack}' ({embedder.clip[:8]}) cannot read: "
            f"use --pack {made_by.pack}, or index into another --db"
        )
    database = Database(place, table, made_by, quiet)
    database.memory = memory
    return database


def create_database(path: str | Path | Place, embedder: Embedder, embed_dim: int, quiet: bool = False) -> Database:
    """Like `open_database`, but make the database first if the folder does not exist or is empty.

    `embed_dim` is E, the width of the embeddings.

    Raises:
        DataError: if there is a file, or a folder with other things, or the database is damaged.
        PackError: if another CLIP made it.
        CodebrushError: if LanceDB is not installed, or the folder cannot be written.
    """
    place = place_of(path)
    check_installed()  # before anything is written
    try:
        place.prepare()
        with place.lock(), _guarded(place, quiet):
            is_new = not place.has_table()
            if is_new:
                place.connect().create_table(TABLE, schema=_schema(embedder, embed_dim), exist_ok=True)
            database = open_database(place, embedder, quiet)
            database.is_new = is_new
            _make_small_indices(database.table)
            return database
    except OSError as error:
        raise cannot_write(place, error.strerror or str(error)) from error


def is_in(column: str, values: list[str]) -> str:
    """The SQL condition that a text column has one of `values`."""
    return f"{column} IN ({', '.join(quoted(value) for value in values)})"


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def metadata_of(embedder: Embedder) -> dict[str, str]:
    """What a table says of the CLIP that made its embeddings."""
    fit = {} if embedder.fit is None else {"fit": embedder.fit}
    return {ABOUT.decode(): json.dumps({"format": FORMAT, "pack": embedder.pack, "clip": embedder.clip, **fit})}


def _schema(embedder: Embedder, embed_dim: int) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False, metadata=KEY),
            pa.field("source", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("embedding", pa.list_(pa.float32(), embed_dim)),
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("size", pa.int64()),  # of the file, in bytes
            pa.field("modified", pa.int64()),  # in ns since 1970; null if the picture is inside a data source
            pa.field("hash", pa.string()),  # sha256 (hex) of the file
            pa.field("text_hash", pa.string()),  # sha256 (hex) of the caption and the source's columns
            pa.field("thumbnail", pa.binary()),
        ],
        metadata=metadata_of(embedder),
    )


def _make_small_indices(table: Any) -> None:
    """Index the paths and the words of the captions, unless that was done; a run may have died between the two."""
    from lancedb.index import FTS, BTree

    made = {column for index in table.list_indices() for column in index.columns}
    if "path" not in made:
        table.create_index("path", config=BTree())
    if "caption" not in made:
        table.create_index("caption", config=FTS(base_tokenizer=WORDS, remove_stop_words=False))


def _read_embedder(place: Place, schema: "pa.Schema") -> Embedder:
    about = json.loads((schema.metadata or {}).get(ABOUT, b"{}"))
    if about.get("format") != FORMAT:
        raise DataError(f"{place} was made by another version of codebrush: index the pictures into a new folder")
    return Embedder(about["pack"], about["clip"], about.get("fit"))


@contextmanager
def _guarded(place: Place, quiet: bool) -> Iterator[None]:
    try:
        with hold_panics() if quiet else nullcontext():
            yield
    except CodebrushError:
        raise
    except Exception as error:  # of many types, mostly RuntimeError, with the cause as text
        raise place.fault(error) from error
