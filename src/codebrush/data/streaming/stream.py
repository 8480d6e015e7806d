"""Rows of a source of many shards by their number, each read from the shard that holds it, of which few are open."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codebrush.data.decoding.images import decode_image, resize_square
from codebrush.data.sources.captioned_images import CaptionedImages, open_source
from codebrush.data.sources.unread import MOST_NAMED, Unread
from codebrush.data.streaming.open_shards import OpenShards, Spool
from codebrush.data.streaming.shards import Shard, count_rows, find_shards, is_remote, reachable, rows_in
from codebrush.errors import CodebrushError, DataError, ImageError
from codebrush.warned import warn

TRIES = 3  # to fetch a shard
MOST_KEPT = 10_000  # names of what cannot be read; beyond, they are only counted


@dataclass(frozen=True)
class ReadyRow:
    """A row whose picture could be decoded: its number and its pixels, uint8 (S, S, 3)."""

    number: int
    pixels: np.ndarray


class Stream:
    """Rows 0 to N - 1 of the shards of `source`; of a source that has none, like a folder of pictures, all its rows as
    one shard. `options` are those of `open_source`, `most` shards are open at once.

    A row is known by its shard and its place there, so that it is the same row in whatever order it is asked for. What
    cannot be read goes into `unread` when it is met.

    Raises:
        DataError: if there are no shards that can be read.
    """

    def __init__(self, source: str, cache: Path, most: int, **options: Any):
        self.source = source
        self.options = {"split": None, "where": (), "strict": False, "limit": None, "exclude": (), **options}
        self.unread = Unread(source, self.options["strict"])
        self._broken: set[tuple[int, int]] = set()
        self._reasons: Counter[str] = Counter()  # of those that were told
        self._told: set[int] = set()  # shards of which `unread` has what the reader left out
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._spool = Spool(cache)
        self._whole: CaptionedImages | None = None
        found = find_shards(source, self.options["split"], self.options["exclude"])
        if found is None:
            self._whole = open_source(source, **self.options)
            counted = {Shard(source, 0): len(self._whole)}
        else:
            by_name = self.options["split"] is not None and find_shards(source) != found
            self.options["split"] = None if by_name else self.options["split"]
            counted = count_rows(found, cache, self._key, self._count, self.unread)
        self.shards, counts = [*counted], np.array([*counted.values()], np.int64)
        if (limit := self.options["limit"]) is not None and found is not None:
            counts = np.diff(np.minimum(np.concatenate([[0], counts.cumsum()]), limit))
            self.shards, counts = self.shards[: int((counts > 0).sum())], counts[counts > 0]
        self.counts = counts
        self.first = np.concatenate([[0], counts.cumsum()[:-1]])
        self._open_shards = OpenShards(self._opened, most, self._spool.folder)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def _key(self) -> str:
        """What the rows of a shard depend on."""
        filtered = {name: self.options[name] for name in ("split", "where")}
        return json.dumps(filtered if any(filtered.values()) else {}, default=str)

    @property
    def skipped(self) -> int:
        """How many pictures could not be decoded so far."""
        return len(self._broken)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the shards' names, bytes and rows, and of what is made of them."""
        if self._whole is not None:
            return self._whole.fingerprint
        named = [[shard.address.rpartition("/")[2], shard.size] for shard in self.shards]
        made = [named, self.counts.tolist(), self.options]
        return hashlib.sha256(json.dumps(made, default=str).encode()).hexdigest()

    def captions(self, row: int) -> list[str]:
        """Every caption that the templates make of a row that `ready` gave."""
        images, place = self._located(row)
        return images.captions(place)

    def group(self, row: int) -> str:
        """The group of a row that `ready` gave."""
        images, place = self._located(row)
        return images.group(place)

    def shards_of(self, rows: np.ndarray) -> list[int]:
        """The numbers of the shards that hold `rows`."""
        return np.unique(np.searchsorted(self.first, rows, side="right") - 1).tolist()

    def expect(self, shard: int) -> None:
        """Begin to open a shard, so that its rows need not be waited for."""
        if self._whole is None:
            self._open_shards.expect(shard)

    def ready(self, row: int, size: int) -> ReadyRow:
        """The row with its picture decoded at size x size; the next readable one in its place if it cannot be.

        That is the next of its shard, or of the next shard that has any.

        Raises:
            DataError: if no picture can be read, or a shard cannot be fetched; with `strict`, if this one cannot.
        """
        for shard, places in self._from(row):
            for place in places(self._images(shard)):
                if (shard, place) in self._broken:
                    continue
                images = self._images(shard)
                assert images is not None
                try:
                    image = decode_image(images.contents(place), wanted=size)
                    return ReadyRow(int(self.first[shard]) + place, np.asarray(resize_square(image, size)))
                except ImageError as error:
                    self._left_out(shard, place, images.name(place), str(error))
        raise DataError(f"{self.source}: none of its {len(self):,} pictures can be read; {self.unread.lines[0]}")

    def close(self) -> None:
        """Remove the copies of shards."""
        self._open_shards.close()
        self._spool.close()

    def _from(self, row: int) -> Iterator[tuple[int, Callable[[CaptionedImages | None], Iterator[int]]]]:
        """The shards from that of `row` on, each with its places from that of `row` on."""
        start = int(np.searchsorted(self.first, row, side="right")) - 1
        for number in range(len(self.shards)):
            shard = (start + number) % len(self.shards)
            first = row - int(self.first[start]) if number == 0 else 0

            def places(images: CaptionedImages | None, first: int = first, shard: int = shard) -> Iterator[int]:
                count = min(int(self.counts[shard]), len(images or ()))
                return ((first + step) % count for step in range(count))

            yield shard, places

    def _located(self, row: int) -> tuple[CaptionedImages, int]:
        shard = int(np.searchsorted(self.first, row, side="right")) - 1
        images = self._images(shard)
        assert images is not None
        return images, row - int(self.first[shard])

    def _images(self, shard: int) -> CaptionedImages | None:
        """The rows of a shard; None if it has none that can be read."""
        return self._open_shards[shard] if self._whole is None else self._whole

    def _left_out(self, shard: int, place: int, name: str, reason: str) -> None:
        """Name a row that cannot be read; the first of a reason are told at once."""
        with self._lock:
            if (shard, place) in self._broken:
                return
            self.unread.stop_if_strict(name, reason)
            self._broken.add((shard, place))
            self._name(name, reason)

    def _name(self, item: str, reason: str) -> None:
        if len(self.unread.named) >= MOST_KEPT:
            self.unread.count("other shard or picture that cannot be read")
            return
        self.unread.name(item, reason)
        kind = re.sub(r"\d+", "0", reason)
        self._reasons[kind] += 1
        if self._reasons[kind] <= MOST_NAMED:
            warn(f"{item}: {reason}, and is left out")

    def _count(self, shard: Shard) -> int:
        """The rows of a shard; with conditions those that meet them."""
        if self._key == "{}":
            return rows_in(shard)
        folder = self._spool.folder / hashlib.sha256(shard.address.encode()).hexdigest()[:16]
        return len(self._read(shard, folder))

    def _opened(self, number: int, folder: Path) -> CaptionedImages | None:
        shard = self.shards[number]
        try:
            images = self._read(shard, folder)
        except _FetchError:
            raise
        except DataError as error:
            if isinstance(error.__cause__, OSError):  # of this machine and not of the shard, such as a full disk
                raise
            with self._lock:
                self._name(shard.address, str(error).removeprefix(f"{shard.address}: "))
            return None
        with self._lock:
            if number not in self._told:
                self._told.add(number)
                for item, reason in images.unread.named:
                    self._name(item, reason)
                self.unread.counted.update(images.unread.counted)
                for note in images.unread.notes:
                    self.unread.note(note)
        return images

    def _read(self, shard: Shard, folder: Path) -> CaptionedImages:
        """Open a shard with its copies in `folder`."""
        path = _fetched(shard, folder) if is_remote(shard.address) else shard.address
        options = {**self.options, "limit": None, "exclude": ()}
        with self._opening:  # one at a time: `datasets` keeps settings and progress for the whole process
            images = open_source(path, cache=folder / "rows", tell=False, **options)
        if is_remote(shard.address) and path.endswith(".tar"):
            Path(path).unlink()  # copied by the reader
        return images


class _FetchError(DataError):
    """A shard cannot be fetched now."""


def _fetched(shard: Shard, folder: Path) -> str:
    """The file of a shard far away, copied into `folder`."""
    import fsspec

    files, name = fsspec.core.url_to_fs(shard.address)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shard.address.rpartition("/")[2]
    for left in reversed(range(TRIES)):
        try:
            with reachable(shard.address):
                files.get_file(name, str(path))
            if shard.size in (0, path.stat().st_size):
                return str(path)
            raise DataError(f"{shard.address}: cut off after {path.stat().st_size:,} of {shard.size:,} bytes")
        except CodebrushError as error:
            if not left:
                raise _FetchError(f"{error}; tried {TRIES} times: see to it, then go on with --resume") from error
    raise AssertionError
