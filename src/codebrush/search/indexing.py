"""Pictures and a CLIP in; a database with an up-to-date row for each picture that can be read out.

What is there already and has not changed costs a look at its size and time. The rest is decoded in threads, embedded
and written batch by batch: a run that is killed has lost at most the batch at hand, and the next one goes on.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from codebrush.data.images import decode_image
from codebrush.errors import DataError, ImageError
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.search.columns import column_kind, fitting, in_words
from codebrush.search.database import Database, is_in, quoted
from codebrush.search.embedding import embed, fitted
from codebrush.search.pictures import Candidate, Source, Value

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 256  # pictures that are looked up and written together
THREADS = 4
THUMBNAIL_SIDE = 128  # pixels of the longer side
VALUE_LENGTH = 80  # characters of a cell that is told
KNOWN = ["path", "size", "modified", "hash", "text_hash"]


@dataclass
class IndexReport:
    """What a run did. `skipped` says of each picture that is not in the database why, and `unfit` of each column
    with cells that its type could not hold: what it holds, how many were left empty, and the first of them.
    """

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    unfit: list[dict[str, Any]] = field(default_factory=list)


class _State(NamedTuple):
    """Of a picture file: its size, time (None inside a data source) and the sha256 of its contents."""

    size: int
    modified: int | None
    hash: str


@dataclass(frozen=True)
class _Found:
    """A candidate after a look at it; `view` None says that its picture is known already."""

    candidate: Candidate
    state: _State
    view: "View | None" = None


class View(NamedTuple):
    """What is kept of a picture: all that the CLIP sees of it (3, S, S) uint8, its own size, and a small copy."""

    pixels: Tensor
    width: int
    height: int
    thumbnail: bytes


def index_pictures(
    database: Database, sources: Sequence[Source], clip: CLIP, progress: Progress | None = None
) -> IndexReport:
    """Bring the rows of `sources` up to date: add, replace, and drop those whose picture is gone.

    Pictures that cannot be read are skipped and told in the report. `progress(done, in all)` counts pictures.
    """
    total, done = sum(source.count for source in sources), 0
    run = _Run(database, clip)
    with ThreadPoolExecutor(THREADS) as threads:
        for source in sources:
            candidates = iter(source.candidates)
            while batch := list(islice(candidates, BATCH)):
                run.take(batch, threads)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
    for source in sources:
        run.drop_gone(source)
    database.settle()
    return run.report


def check_read(database: Database, report: IndexReport) -> None:
    """DataError where no picture could be read; a database that was made for them is taken away again."""
    is_emptied = not report.skipped and (report.removed or database.count())  # a folder whose pictures have all gone
    if report.added or report.updated or report.unchanged or is_emptied:
        return
    database.discard()
    count = len(report.skipped)
    found = f"none of the {count:,} pictures could be read" if count > 1 else "the picture could not be read"
    raise DataError(f"nothing was indexed into {database.path}: {found if count else 'there are no pictures'}")


class _Run:
    def __init__(self, database: Database, clip: CLIP) -> None:
        self.database, self.clip = database, clip
        self.report = IndexReport()
        self.seen: set[str] = set()

    def take(self, batch: Sequence[Candidate], threads: ThreadPoolExecutor) -> None:
        """Look at a batch, and write what is new about it."""
        batch = list(self._numbered(batch))
        if not batch:
            return
        known = self._known([candidate.path for candidate in batch])
        found: list[_Found] = []
        failed: list[str] = []
        looks = threads.map(lambda each: self._look(each, known.get(each.path)), batch)
        for candidate, result in zip(batch, looks, strict=True):
            if isinstance(result, ImageError):
                self.report.skipped.append(
                    {"path": candidate.path, "reason": str(result).removeprefix(f"{candidate.path}: ")}
                )
                failed.append(candidate.path)
            elif result is None:
                self.report.unchanged += 1
            else:
                found.append(result)
        stale = [path for path in failed if path in known]
        self.report.removed += self.database.delete(stale) if stale else 0
        self._relabel([each for each in found if each.view is None], known)
        self._write([(each, each.view) for each in found if each.view is not None])

    def _numbered(self, batch: Sequence[Candidate]) -> Iterator[Candidate]:
        """Each file once, and each row of a data source by a name of its own."""
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
        return {row["path"]: row for part in self.database.rows(KNOWN, where) for row in part.to_pylist()}

    def _look(self, candidate: Candidate, known: dict[str, Any] | None) -> _Found | ImageError | None:
        """None where nothing has changed."""
        try:
            state = _stat(candidate)
            if known is None:
                data = candidate.contents()
                return _Found(candidate, state._replace(hash=_digest(data)), _view(self.clip, data))
            same_text = known["text_hash"] == candidate.text_hash
            same_time = state.modified is not None and known["modified"] == state.modified
            if same_text and same_time and known["size"] == state.size:
                return None
            data = candidate.contents()
            state = state._replace(hash=_digest(data))
            if known["hash"] != state.hash:
                return _Found(candidate, state, _view(self.clip, data))
            return None if same_text and known["modified"] == state.modified else _Found(candidate, state)
        except ImageError as error:
            return error

    def _relabel(self, found: Sequence[_Found], known: dict[str, dict[str, Any]]) -> None:
        """Write new captions and times of pictures that are the same; a time alone is no news."""
        if not found:
            return
        _, replaced = self.database.write(self._rows(found))
        same = sum(known[each.candidate.path]["text_hash"] == each.candidate.text_hash for each in found)
        self.report.updated += replaced - same
        self.report.unchanged += same

    def _write(self, found: Sequence[tuple[_Found, View]]) -> None:
        if not found:
            return
        embeddings = embed(self.clip, [seen.pixels for _, seen in found]).numpy()  # (B, E)
        good = [bool(np.isfinite(row).all()) for row in embeddings]
        kept = [each for (each, _), is_good in zip(found, good, strict=True) if is_good]
        for (each, _), is_good in zip(found, good, strict=True):
            if not is_good:
                reason = "the CLIP makes nothing of it but NaN"
                self.report.skipped.append({"path": each.candidate.path, "reason": reason})
        if kept:
            added, updated = self.database.write(self._rows(kept, embeddings[good]))
            self.report.added += added
            self.report.updated += updated

    def _rows(self, found: Sequence[_Found], embeddings: np.ndarray | None = None) -> "pa.Table":
        import pyarrow as pa

        self._grow([each.candidate.columns for each in found])
        schema = self.database.table.schema
        cells: dict[str, list[Any]] = {
            "path": [each.candidate.path for each in found],
            "source": [each.candidate.source for each in found],
            "caption": [each.candidate.caption for each in found],
            "text_hash": [each.candidate.text_hash for each in found],
            "size": [each.state.size for each in found],
            "modified": [each.state.modified for each in found],
            "hash": [each.state.hash for each in found],
        }
        if embeddings is not None:
            views = [each.view for each in found if each.view is not None]
            cells["width"], cells["height"] = [each.width for each in views], [each.height for each in views]
            cells["thumbnail"] = [each.thumbnail for each in views]
        for name in schema.names[schema.get_field_index("thumbnail") + 1 :]:
            kind = schema.field(name).type
            cells[name] = [self._cell(each.candidate, name, kind) for each in found]
        arrays = {name: pa.array(values, schema.field(name).type) for name, values in cells.items()}
        if embeddings is not None:
            flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))  # (B * E,)
            arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        names = [name for name in schema.names if name in arrays]
        return pa.table([arrays[name] for name in names], schema=pa.schema([schema.field(name) for name in names]))

    def _grow(self, rows: Sequence[dict[str, Value]]) -> None:
        """Columns of the source that the table does not have yet."""
        import pyarrow as pa

        there = set(self.database.table.schema.names)
        new: dict[str, list[Value]] = {}
        for name, value in (cell for row in rows for cell in row.items() if cell[0] not in there):
            new.setdefault(name, []).append(value)
        if new:
            self.database.add_columns(pa.field(name, column_kind(values)) for name, values in new.items())

    def _cell(self, candidate: Candidate, name: str, kind: "pa.DataType") -> Any:
        """A cell as the column that an earlier source may have made wants it; one that does not fit is told."""
        value = candidate.columns.get(name)
        cell = fitting(value, kind)
        if cell is None and value is not None:
            told = next((each for each in self.report.unfit if each["column"] == name), None)
            if told is None:
                told = {"column": name, "holds": in_words(kind), "cells": 0, "path": candidate.path}
                told["value"] = str(value)[:VALUE_LENGTH]
                self.report.unfit.append(told)
            told["cells"] += 1
        return cell

    def drop_gone(self, source: Source) -> None:
        """Drop the rows of a source that were not met there. A file below a folder must be gone from the disk as
        well: another process may have indexed it since it was looked for.
        """
        where = f"source = {quoted(source.name)}"
        if source.is_folder:
            where = f"({where}) OR (modified IS NOT NULL AND starts_with(path, {quoted(source.name + os.sep)}))"
        for part in self.database.rows(["path", "modified"], where):
            rows = part.to_pylist()
            gone = [row["path"] for row in rows if row["path"] not in self.seen and _is_gone(row, source)]
            self.report.removed += self.database.delete(gone) if gone else 0


def thumbnail(image: Image.Image) -> bytes:
    """A picture as a WEBP file of a few kilobytes, its longer side at most `THUMBNAIL_SIDE` pixels."""
    small = decode_image(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=85)
    return file.getvalue()


def _view(clip: CLIP, data: bytes) -> View:
    image = decode_image(data, keep_mode=True)
    return View(fitted(clip, image), image.width, image.height, thumbnail(image))


def _stat(candidate: Candidate) -> _State:
    """Before the file is read, so that a change in between is met by the next run."""
    if candidate.data is not None:
        return _State(len(candidate.data), None, "")
    try:
        stat = os.stat(candidate.path)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    return _State(stat.st_size, stat.st_mtime_ns, "")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_gone(row: dict[str, Any], source: Source) -> bool:
    return not source.is_folder or row["modified"] is None or not os.path.exists(row["path"])
