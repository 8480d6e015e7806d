"""Indexes pictures: brings the rows of a database up to date with the picture files and data sources.

For a picture that has not changed only its size and time are read. The others are decoded in threads, embedded and
written batch by batch: a run that is killed loses at most the current batch, and the next one continues.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import decode_image, read_picture
from codebrush.data.picture_fitting import Fit, embed_views, own_fit, views_for
from codebrush.data.sources.file_names import existing
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, ImageError, UsageError
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.search.columns import column_kind, convert_cell, type_name
from codebrush.search.database import FRAME, Database, is_in, quoted
from codebrush.search.pictures import Candidate, Source, Value

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 256  # pictures looked up and written together
THREADS = 4
THUMBNAIL_SIDE = 128  # pixels of the longer side
VALUE_LENGTH = 80  # characters of a cell in a report
STORED_COLUMNS = ["hash", "width", "height", "thumbnail", "embedding"]
STATE_COLUMNS = ["path", "size", "modified", "hash", "text_hash"]


@dataclass
class IndexReport:
    """What a run did, in numbers of pictures. `skipped` lists the pictures that could not be indexed, with the reason.
    `reused` of the added ones were known under another path. `renamed` lists the columns with another name in the
    database, `new` ones that it did not have yet. `unfit` lists the columns with cells that do not fit their type: what
    the column holds, how many cells were left empty, and the path and value of the first. `frames` has the number of
    the frame, from 0, by which each animation and file of several pages was embedded.
    """

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    reused: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    unfit: list[dict[str, Any]] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    renamed: list[dict[str, Any]] = field(default_factory=list)


class _State(NamedTuple):
    """A picture file's size in bytes, time in ns since 1970 (None inside a data source) and sha256 (hex)."""

    size: int
    modified: int | None
    hash: str


@dataclass(frozen=True)
class _Change:
    """A new or changed picture; `decoded` is None if only its caption, columns or time changed, or for now if the
    database seems to have the same file under another path (`is_stored`).
    """

    candidate: Candidate
    state: _State
    decoded: "Decoded | None" = None
    is_stored: bool = False


class Decoded(NamedTuple):
    """What is kept of a picture: what the CLIP sees of it (T, 3, H, W) uint8 (see `views_for`), its own size, and a
    thumbnail file; or the embedding (E,) float32 in place of what the CLIP sees.
    """

    views: Tensor | None
    width: int
    height: int
    thumbnail: bytes
    frame: int | None = None
    embedding: np.ndarray | None = None


def index_pictures(
    database: Database,
    sources: Sequence[Source],
    clip: CLIP,
    progress: Progress | None = None,
    fit: Fit | None = None,
) -> IndexReport:
    """Bring the rows of `sources` up to date: add and replace rows, and delete those whose picture is gone.

    Pictures that cannot be read are skipped and listed in the report. `progress` counts pictures. They are fitted to
    what the CLIP reads as the database says (`Embedder.fit`); `fit` only checks that it does so in that way.

    Raises:
        UsageError: if the database was made with another `fit`.
        DataError: if the database is damaged, or a picture of a source that was opened with `strict` cannot be read.
        CodebrushError: if the database cannot be written.
    """
    total, done = sum(source.count for source in sources), 0
    made_with = database.embedder.fit or own_fit(clip)
    if fit not in (None, made_with):
        raise UsageError(f"{database.path} was made with --fit {made_with}: leave it out, or index into another --db")
    run = _Run(database, clip)
    for source in sources:
        new = database.add_source_names(source.renamed)
        run.report.renamed += [
            {"source": source.name, "column": column, "as": own, "new": column in new}
            for column, own in source.renamed.items()
        ]
    with ThreadPoolExecutor(THREADS) as threads:
        for source in sources:
            candidates = iter(source.candidates)
            while batch := list(islice(candidates, BATCH)):
                run.take(batch, threads, source.unread)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
    for source in sources:
        run.delete_gone(source)
    database.settle()
    return run.report


def check_read(database: Database, report: IndexReport) -> None:
    """Raise a DataError if no picture could be read, and delete the database if it was made for them."""
    is_emptied = not report.skipped and (report.removed or database.count())  # a folder whose pictures are all gone
    if report.added or report.updated or report.unchanged or is_emptied:
        return
    database.discard()
    count = len(report.skipped)
    found = f"none of the {count:,} pictures could be read" if count > 1 else "the picture could not be read"
    raise DataError(f"nothing was indexed into {database.path}: {found if count else 'there are no pictures'}")


class _Run:
    """One call of `index_pictures`."""

    def __init__(self, database: Database, clip: CLIP) -> None:
        self.database, self.clip = database, clip
        self.report = IndexReport()
        self.seen: set[str] = set()
        # The beginnings of the hashes that the database has: 8 bytes each, for collections of millions.
        self.stored = {_beginning(each) for part in database.rows(["hash"]) for each in part["hash"].to_pylist()}

    def take(self, batch: Sequence[Candidate], threads: ThreadPoolExecutor, unread: Unread) -> None:
        """Check a batch of the source with this `unread`, and write what is new or changed."""
        self.unread = unread
        batch = list(self._numbered(batch))
        if not batch:
            return
        known = self._known([candidate.path for candidate in batch])
        changes: list[_Change] = []
        failed: list[str] = []
        results = threads.map(lambda each: self._check(each, known.get(each.path)), batch)
        for candidate, result in zip(batch, results, strict=True):
            if isinstance(result, ImageError):
                self._skip(candidate.path, result)
                failed.append(candidate.path)
            elif result is None:
                self.report.unchanged += 1
            else:
                changes.append(result)
        changes, unreadable = self._with_stored(changes)
        failed += unreadable
        stale = [path for path in failed if path in known]
        self.report.removed += self.database.delete(stale) if stale else 0
        self._relabel([each for each in changes if each.decoded is None], known)
        self._write([(each, each.decoded) for each in changes if each.decoded is not None])

    def _skip(self, path: str, reason: ImageError | str) -> None:
        """Report a picture that cannot be indexed. Raises DataError with `strict`."""
        reason = str(reason).removeprefix(f"{path}: ")
        self.unread.stop_if_strict(path, reason)
        self.report.skipped.append({"path": path, "reason": reason})

    def _numbered(self, batch: Sequence[Candidate]) -> Iterator[Candidate]:
        """Yield each file once, and each row of a data source under a unique name."""
        for candidate in batch:
            path, number = candidate.path, 1
            while candidate.data is not None and path in self.seen:
                number += 1
                path = f"{candidate.path}~{number}"
            if path not in self.seen:
                self.seen.add(path)
                yield replace(candidate, path=path)

    def _known(self, paths: list[str]) -> dict[str, dict[str, Any]]:
        where = is_in("path", paths)
        return {row["path"]: row for part in self.database.rows(STATE_COLUMNS, where) for row in part.to_pylist()}

    def _check(self, candidate: Candidate, known: dict[str, Any] | None) -> _Change | ImageError | None:
        """What changed since the row `known` was written; None if nothing did."""
        try:
            state = _stat(candidate)
            if known is None:
                data = candidate.contents()
                return self._decoded(candidate, state, data)
            same_text = known["text_hash"] == candidate.text_hash
            same_time = state.modified is not None and known["modified"] == state.modified
            if same_text and same_time and known["size"] == state.size:
                return None
            data = candidate.contents()
            if known["hash"] != _digest(data):
                return self._decoded(candidate, state, data)
            state = state._replace(hash=known["hash"])
            return None if same_text and known["modified"] == state.modified else _Change(candidate, state)
        except ImageError as error:
            return error

    def _decoded(self, candidate: Candidate, state: _State, data: bytes) -> _Change:
        state = state._replace(hash=_digest(data))
        if _beginning(state.hash) in self.stored:
            return _Change(candidate, state, is_stored=True)
        return _Change(candidate, state, self._read(data))

    def _read(self, data: bytes) -> Decoded:
        picture = read_picture(data, keep_mode=True, wanted=max(*self.clip.image_shape, THUMBNAIL_SIDE))
        views = views_for(self.clip, picture.image, self.database.embedder.fit)
        return Decoded(views, *picture.size, thumbnail(picture.image), picture.frame)

    def _with_stored(self, changes: list[_Change]) -> tuple[list[_Change], list[str]]:
        """The changes with what the database has of the same files under other paths, which were moved or copied. Also
        the paths of those that it does not have after all and that cannot be read.
        """
        wanted = {each.state.hash for each in changes if each.is_stored}
        if not wanted:
            return changes, []
        columns = [*STORED_COLUMNS, *{FRAME}.intersection(self.database.table.schema.names)]
        where = is_in("hash", sorted(wanted))
        rows = (row for part in self.database.rows(columns, where) for row in part.to_pylist())
        found = {row["hash"]: row for row in rows if row["embedding"] is not None and row["width"] is not None}
        done, unreadable = [], list[str]()
        for change in changes:
            row = found.get(change.state.hash) if change.is_stored else None
            if row is not None:
                vector, seen = np.asarray(row["embedding"], np.float32), (row["width"], row["height"], row["thumbnail"])
                change = replace(change, decoded=Decoded(None, *seen, row.get(FRAME), vector))
                self.report.reused += 1
            elif change.is_stored:
                try:
                    change = replace(change, decoded=self._read(change.candidate.contents()))
                except ImageError as error:
                    self._skip(change.candidate.path, error)
                    unreadable.append(change.candidate.path)
                    continue
            done.append(change)
        return done, unreadable

    def _relabel(self, changes: Sequence[_Change], known: dict[str, dict[str, Any]]) -> None:
        """Write new captions, columns and times of unchanged pictures; a new time alone does not count as an update."""
        if not changes:
            return
        _, replaced = self.database.write(self._rows(changes))
        same = sum(known[each.candidate.path]["text_hash"] == each.candidate.text_hash for each in changes)
        self.report.updated += replaced - same
        self.report.unchanged += same

    def _write(self, changes: Sequence[tuple[_Change, Decoded]]) -> None:
        if not changes:
            return
        views = [each.views for _, each in changes if each.views is not None]
        fresh = iter(embed_views(self.clip, views).cpu().numpy())
        embeddings = np.stack(
            [next(fresh) if each.embedding is None else each.embedding for _, each in changes]
        )  # (B, E)
        good = [bool(np.isfinite(row).all()) for row in embeddings]
        kept = [each for (each, _), is_good in zip(changes, good, strict=True) if is_good]
        for (each, decoded), is_good in zip(changes, good, strict=True):
            if is_good and decoded.frame is not None:
                self.report.frames[each.candidate.path] = decoded.frame
            if not is_good:
                self._skip(each.candidate.path, "its embedding is not finite (NaN)")
        if kept:
            added, updated = self.database.write(self._rows(kept, embeddings[good]))
            self.report.added += added
            self.report.updated += updated

    def _rows(self, changes: Sequence[_Change], embeddings: np.ndarray | None = None) -> "pa.Table":
        import pyarrow as pa

        decoded = [each.decoded for each in changes if embeddings is not None and each.decoded is not None]
        self._add_columns([each.candidate.columns for each in changes])
        if any(each.frame is not None for each in decoded):
            self.database.add_columns([pa.field(FRAME, pa.int64())])
        schema = self.database.table.schema
        cells: dict[str, list[Any]] = {
            "path": [each.candidate.path for each in changes],
            "source": [each.candidate.source for each in changes],
            "caption": [each.candidate.caption for each in changes],
            "text_hash": [each.candidate.text_hash for each in changes],
            "size": [each.state.size for each in changes],
            "modified": [each.state.modified for each in changes],
            "hash": [each.state.hash for each in changes],
        }
        if embeddings is not None:
            cells["width"], cells["height"] = [each.width for each in decoded], [each.height for each in decoded]
            cells["thumbnail"] = [each.thumbnail for each in decoded]
            cells |= {FRAME: [each.frame for each in decoded]} if FRAME in schema.names else {}
        for name in schema.names[schema.get_field_index("thumbnail") + 1 :]:
            kind = schema.field(name).type
            if name == FRAME:
                continue
            cells[name] = [self._cell(each.candidate, name, kind) for each in changes]
        arrays = {name: pa.array(values, schema.field(name).type) for name, values in cells.items()}
        if embeddings is not None:
            flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))  # (B * E,)
            arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        names = [name for name in schema.names if name in arrays]
        return pa.table([arrays[name] for name in names], schema=pa.schema([schema.field(name) for name in names]))

    def _add_columns(self, rows: Sequence[dict[str, Value]]) -> None:
        """Add the columns of a source that the table does not have yet."""
        import pyarrow as pa

        existing = set(self.database.table.schema.names)
        new: dict[str, list[Value]] = {}
        for name, value in (cell for row in rows for cell in row.items() if cell[0] not in existing):
            new.setdefault(name, []).append(value)
        if new:
            self.database.add_columns(pa.field(name, column_kind(values)) for name, values in new.items())

    def _cell(self, candidate: Candidate, name: str, kind: "pa.DataType") -> Any:
        """A cell in its column's type, which an earlier source may have set; one that does not fit is reported."""
        value = candidate.columns.get(name)
        cell = convert_cell(value, kind)
        if cell is None and value is not None:
            entry = next((each for each in self.report.unfit if each["column"] == name), None)
            if entry is None:
                entry = {"column": name, "holds": type_name(kind), "cells": 0, "path": candidate.path}
                entry["value"] = str(value)[:VALUE_LENGTH]
                self.report.unfit.append(entry)
            entry["cells"] += 1
        return cell

    def delete_gone(self, source: Source) -> None:
        """Delete the rows of a source that it no longer has. A file below a folder must be gone from the disk too:
        another process may have indexed it since the folder was listed.
        """
        where = f"source = {quoted(source.name)}"
        if source.is_folder:
            where = f"({where}) OR (modified IS NOT NULL AND starts_with(path, {quoted(source.name + os.sep)}))"
        for part in self.database.rows(["path", "modified"], where):
            rows = part.to_pylist()
            gone = [row["path"] for row in rows if row["path"] not in self.seen and _is_gone(row, source)]
            self.report.removed += self.database.delete(gone) if gone else 0


def thumbnail(image: Image.Image) -> bytes:
    """A WEBP file of a few kilobytes with the picture, its longer side at most `THUMBNAIL_SIDE` pixels."""
    small = decode_image(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=85)
    return file.getvalue()


def _stat(candidate: Candidate) -> _State:
    """Size and time; read before the file, so that the next run notices a change in between."""
    if candidate.data is not None:
        return _State(len(candidate.data), None, "")
    try:
        stat = os.stat(existing(Path(candidate.path)))
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    return _State(stat.st_size, stat.st_mtime_ns, "")


def _beginning(digest: str | None) -> int:
    """The first 8 bytes of a hash as a number."""
    return int((digest or "0")[:16], 16)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_gone(row: dict[str, Any], source: Source) -> bool:
    return not source.is_folder or row["modified"] is None or not os.path.exists(row["path"])
