"""Rows of a source of many shards by their number, each read from the shard that holds it, of which few are open."""

import hashlib
import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codebrush.data.decoding.images import decode_image, resize_square
from codebrush.data.sources.captioned_images import CaptionedImages, NoRowLeft, digest_of_pieces, open_source
from codebrush.data.sources.unread import MOST_NAMED, Unread
from codebrush.data.streaming.open_shards import OpenShards, Spool
from codebrush.data.streaming.shards import (
    FetchError,
    Shard,
    count_rows,
    fault_of_machine,
    find_shards,
    is_remote,
    named_for_split,
    rows_in,
    tried,
)
from codebrush.errors import DataError, ImageError, without_secrets
from codebrush.warned import warn

MOST_KEPT = 10_000  # names of what cannot be read; beyond, they are only counted
OPENING = threading.Lock()  # one shard at a time: `datasets` keeps settings and progress for the whole process


@dataclass(frozen=True)
class ReadyRow:
    """A row whose picture could be decoded: its number and its pixels, uint8 (S, S, 3)."""

    number: int
    pixels: np.ndarray


class Stream:
    """Rows 0 to N - 1 of the shards of `source`; of a source that has none, like a folder of pictures, all its rows as
    one shard. `options` are those of `open_source`, `most` shards are open at once, or as many as a batch needs.

    A row is known by its shard and its place there, so that it is the same row in whatever order it is asked for. What
    cannot be read goes into `unread` when it is met.

    Raises:
        DataError: if there are no shards that can be read.
    """

    def __init__(self, source: str, cache: Path, most: int, **options: Any):
        self.source = source
        self.options = {"split": None, "where": (), "strict": False, "limit": None, "exclude": (), **options}
        self.unread = Unread(source, self.options["strict"])
        self.broken: set[tuple[int, int]] = set()  # pictures that could not be decoded, by shard and place there
        self._reasons: Counter[str] = Counter()  # of those that were told
        self._told: set[int] = set()  # shards of which `unread` has what the reader left out
        self._lock = threading.Lock()
        self._spool = Spool(cache)
        self._whole: CaptionedImages | None = None
        self._no_row_left = ""  # the reason of a shard of which the conditions leave none
        found, split = find_shards(source, exclude=self.options["exclude"]), self.options["split"]
        if found is None:
            with OPENING:
                self._whole = open_source(source, **self.options)
            counted = {Shard(source, 0): len(self._whole)}
        else:
            if split is not None and (named := named_for_split(source, found, split)) is not None:
                found, self.options["split"] = named, None
            counted = self._counted(found, cache)
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
    def _is_filtered(self) -> bool:
        return bool(self.options["split"] or self.options["where"])

    @property
    def skipped(self) -> int:
        """How many pictures could not be decoded so far."""
        return len(self.broken)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the shards' names, bytes and rows, of pieces of those on disk, and of what is made of
        them."""
        if self._whole is not None:
            return self._whole.fingerprint
        named = [
            [shard.address.rpartition("/")[2], shard.size, None if is_remote(shard.address) else _pieces(shard)]
            for shard in self.shards
        ]
        deciding = {name: value for name, value in self.options.items() if name not in ("strict", "exclude")}
        made = [named, self.counts.tolist(), deciding]
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

    def begin_batch(self, shards: Sequence[int]) -> None:
        """Begin to open the shards of the next rows and of those that follow; they are kept until the next batch."""
        if self._whole is None:
            self._open_shards.begin_batch(shards)

    def ready(self, row: int, size: int) -> ReadyRow:
        """The row with its picture decoded at size x size; the next readable one in its place if it cannot be.

        That is the next of its shard, or of the next shard that has any.

        Raises:
            DataError: if no picture can be read, or a shard cannot be fetched; with `strict`, if this one cannot.
        """
        for shard, places in self._from(row):
            for place in places(self._images(shard)):
                if (shard, place) in self.broken:
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
            if (shard, place) in self.broken:
                return
            self.unread.stop_if_strict(name, reason)
            self.broken.add((shard, place))
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

    def _counted(self, found: Sequence[Shard], cache: Path) -> dict[Shard, int]:
        """The rows of each shard that has any; the others are told."""
        decided_by = ("split", "where", "captions", "image_column", "group") if self._is_filtered else ()
        key = json.dumps({name: self.options.get(name) for name in decided_by}, default=str)
        rows = count_rows(found, cache, key, self._count)
        counted = {shard: row for shard, row in zip(found, rows, strict=True) if isinstance(row, int) and row}
        if not counted:
            reason = next((row for row in rows if isinstance(row, str)), self._no_row_left or "they are empty")
            raise DataError(f"{self.source}: none of its {len(found)} shards has a row: {reason}")
        for shard, row in zip(found, rows, strict=True):
            if isinstance(row, str):
                self._name(shard.address, row)
            elif not row and self._is_filtered:
                self.unread.count("shard without a row that meets the conditions")
            elif not row:
                self._name(shard.address, "it has no rows")
        return counted

    def _count(self, shard: Shard) -> int:
        """The rows of a shard; with conditions those that meet them."""
        if not self._is_filtered:
            return tried(shard.address, lambda: rows_in(shard))
        folder = self._spool.folder / hashlib.sha256(shard.address.encode()).hexdigest()[:16]
        try:
            return len(self._read(shard, folder))
        except NoRowLeft as error:
            self._no_row_left = str(error)
            return 0
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _opened(self, number: int, folder: Path) -> CaptionedImages | None:
        shard = self.shards[number]
        try:
            images = self._read(shard, folder)
        except FetchError:
            raise
        except DataError as error:
            with self._lock:
                if number not in self._told:
                    self._told.add(number)
                    self._name(shard.address, str(error).removeprefix(f"{without_secrets(shard.address)}: "))
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
        """Open a shard with its copies in `folder`. Raises FetchError if this machine or a server fails."""
        path = _fetched(shard, folder) if is_remote(shard.address) else shard.address
        options = {**self.options, "limit": None, "exclude": ()}
        try:
            Path(path).stat()
            with OPENING:
                images = open_source(path, cache=folder / "rows", tell=False, **options)
        except (DataError, OSError) as error:
            if (fault := fault_of_machine(error)) is None:
                raise
            reason = (fault.strerror or str(fault)).lower()
            raise FetchError(
                f"{shard.address}: cannot be read or copied to {folder}: {reason}; see to it, then go on with --resume"
            ) from error
        if is_remote(shard.address) and path.endswith(".tar"):
            Path(path).unlink()  # copied by the reader
        return images


def _fetched(shard: Shard, folder: Path) -> str:
    """The file of a shard far away, copied into `folder`."""
    import fsspec

    files, name = fsspec.core.url_to_fs(shard.address)
    path = folder / shard.address.rpartition("/")[2]

    def fetch() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        files.get_file(name, str(path))
        if shard.size in (0, path.stat().st_size):
            return str(path)
        raise DataError(f"{shard.address}: cut off after {path.stat().st_size:,} of {shard.size:,} bytes")

    return tried(shard.address, fetch)


def _pieces(shard: Shard) -> str:
    return digest_of_pieces(Path(shard.address)).hex()
