"""Finds out what is new or changed in a batch of pictures, and embeds it; nothing is written.

For a picture that has not changed only its size and time are read. The others are decoded in threads and embedded.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import ReadPicture, decode_image, read_picture
from codebrush.data.picture_fitting import Fit, embed_views, views_for
from codebrush.data.sources.file_names import existing
from codebrush.data.sources.unread import Unread
from codebrush.errors import ImageError
from codebrush.models.clip import CLIP
from codebrush.search.database import FRAME, Database, is_in
from codebrush.search.index_report import IndexReport
from codebrush.search.pictures import Candidate

THREADS = 4
THUMBNAIL_SIDE = 128  # pixels of the longer side
STORED_COLUMNS = ["hash", "width", "height", "thumbnail", "embedding"]
STATE_COLUMNS = ["path", "size", "modified", "hash", "text_hash"]


class State(NamedTuple):
    """A picture file's size in bytes, time in ns since 1970 (None inside a data source) and sha256 (hex)."""

    size: int
    modified: int | None
    hash: str


@dataclass(frozen=True)
class Change:
    """A new or changed picture; `decoded` is None if only its caption, columns or time changed, or for now if the
    database seems to have the same file under another path (`is_stored`).
    """

    candidate: Candidate
    state: State
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


@dataclass
class Examined:
    """What was found in a batch. `stale` are paths of rows whose picture cannot be read any more, `relabelled` the
    changes of captions, columns and times alone, of which `same` are only of a time, and `embedded` the pictures with
    their unit vectors `embeddings` (B, E). `known` are the paths that the database has. `report` counts what needs no
    writing.
    """

    report: IndexReport
    known: frozenset[str]
    stale: list[str] = field(default_factory=list)
    relabelled: list[Change] = field(default_factory=list)
    same: int = 0
    embedded: list[Change] = field(default_factory=list)
    embeddings: np.ndarray | None = None


class Examiner:
    """Examines batches of pictures for a database with the CLIP that made it."""

    def __init__(self, database: Database, clip: CLIP) -> None:
        self.database, self.clip = database, clip
        # The beginnings of the hashes that the database has: 8 bytes each, for collections of millions.
        self.stored = {_beginning(each) for part in database.rows(["hash"]) for each in part["hash"].to_pylist()}
        self.threads = ThreadPoolExecutor(THREADS)

    def close(self) -> None:
        """End the threads."""
        self.threads.shutdown()

    def examine(self, batch: Sequence[Candidate], unread: Unread) -> Examined:
        """Examine a batch of the source with this `unread`, in which no path is twice."""
        self.unread, self.report = unread, IndexReport()
        known = self._known([candidate.path for candidate in batch]) if batch else {}
        done = Examined(self.report, frozenset(known))
        changes: list[Change] = []
        failed: list[str] = []
        results = self.threads.map(lambda each: self._check(each, known.get(each.path)), batch)
        for candidate, result in zip(batch, results, strict=True):
            if isinstance(result, ImageError):
                self._skip(candidate.path, result)
                failed.append(candidate.path)
            elif result is None:
                self.report.unchanged += 1
            else:
                changes.append(result)
        changes, unreadable = self._with_stored(changes)
        done.stale = [path for path in (*failed, *unreadable) if path in known]
        done.relabelled = [each for each in changes if each.decoded is None]
        done.same = sum(known[each.candidate.path]["text_hash"] == each.candidate.text_hash for each in done.relabelled)
        self._embed(done, [(each, each.decoded) for each in changes if each.decoded is not None])
        return done

    def _skip(self, path: str, reason: ImageError | str) -> None:
        """Report a picture that cannot be indexed. Raises DataError with `strict`."""
        reason = str(reason).removeprefix(f"{path}: ")
        self.unread.stop_if_strict(path, reason)
        self.report.skipped.append({"path": path, "reason": reason})

    def _known(self, paths: list[str]) -> dict[str, dict[str, Any]]:
        where = is_in("path", paths)
        return {row["path"]: row for part in self.database.rows(STATE_COLUMNS, where) for row in part.to_pylist()}

    def _check(self, candidate: Candidate, known: dict[str, Any] | None) -> Change | ImageError | None:
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
            return None if same_text and known["modified"] == state.modified else Change(candidate, state)
        except ImageError as error:
            return error

    def _decoded(self, candidate: Candidate, state: State, data: bytes) -> Change:
        state = state._replace(hash=_digest(data))
        if _beginning(state.hash) in self.stored:
            return Change(candidate, state, is_stored=True)
        return Change(candidate, state, self._read(data))

    def _read(self, data: bytes) -> Decoded:
        picture, views = read_views(self.clip, data, self.database.embedder.fit)
        return Decoded(views, *picture.size, thumbnail(picture.image), picture.frame)

    def _with_stored(self, changes: list[Change]) -> tuple[list[Change], list[str]]:
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

    def _embed(self, done: Examined, changes: Sequence[tuple[Change, Decoded]]) -> None:
        if not changes:
            return
        views = [each.views for _, each in changes if each.views is not None]
        fresh = iter(embed_views(self.clip, views).cpu().numpy())
        embeddings = np.stack(
            [next(fresh) if each.embedding is None else each.embedding for _, each in changes]
        )  # (B, E)
        good = np.array([bool(np.isfinite(row).all()) for row in embeddings])  # (B,)
        for (each, decoded), is_good in zip(changes, good.tolist(), strict=True):
            if not is_good:
                self._skip(each.candidate.path, "its embedding is not finite (NaN)")
                continue
            done.embedded.append(replace(each, decoded=decoded._replace(views=None)))
            if decoded.frame is not None:
                self.report.frames[each.candidate.path] = decoded.frame
        done.embeddings = embeddings[good]


def read_views(clip: CLIP, data: bytes, fit: Fit | None) -> tuple[ReadPicture, Tensor]:
    """The picture in a file, large enough for the CLIP and a thumbnail, and what the CLIP sees of it (T, 3, H, W)."""
    picture = read_picture(data, keep_mode=True, wanted=max(*clip.image_shape, THUMBNAIL_SIDE))
    return picture, views_for(clip, picture.image, fit)


def thumbnail(image: Image.Image) -> bytes:
    """A WEBP file of a few kilobytes with the picture, its longer side at most `THUMBNAIL_SIDE` pixels."""
    small = decode_image(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=85)
    return file.getvalue()


def _stat(candidate: Candidate) -> State:
    """Size and time; read before the file, so that the next run notices a change in between."""
    if candidate.data is not None:
        return State(len(candidate.data), None, "")
    try:
        stat = os.stat(existing(Path(candidate.path)))
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    return State(stat.st_size, stat.st_mtime_ns, "")


def _beginning(digest: str | None) -> int:
    """The first 8 bytes of a hash as a number."""
    return int((digest or "0")[:16], 16)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
