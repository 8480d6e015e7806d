"""Decodes the pictures of a source once, at one size, into an array on disk."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from codebrush.data.decoding.images import decode_image, resize_square
from codebrush.data.decoding.large_pictures import pixel_limit
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.errors import DataError, ImageError
from codebrush.files import atomic_file, made_once

CHUNK = 256  # rows decoded at once, which bounds the memory and the delay of Ctrl-C


@dataclass(frozen=True)
class PixelCache:
    """Decoded pictures: `pixels` is uint8 (N, S, S, 3), mapped from disk.

    `rows[k]` is the row of the source that picture k comes from. `skipped` has the name of each row without a readable
    picture, and the reason.
    """

    pixels: np.ndarray
    rows: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The pictures at `indices` (0 to len - 1) of this cache: (B, 3, S, S) uint8."""
        picked = self.pixels[np.asarray(indices, dtype=np.int64)]  # (B, S, S, 3)
        return torch.from_numpy(picked).permute(0, 3, 1, 2).contiguous()  # (B, 3, S, S)


def decode_once(source: CaptionedImages, size: int, folder: str | Path) -> PixelCache:
    """Decode each readable picture of `source` to size x size, or reuse the cache of an earlier run in `folder`.

    If several processes ask for the same pictures, one decodes and the others wait.

    Raises:
        DataError: if no picture can be read, or with `strict` one cannot.
        CodebrushError: if the folder cannot be written.
    """
    folder = Path(folder)
    stem = folder / f"pixels-{size}-{source.fingerprint[:16]}"
    cache = made_once(
        Path(f"{stem}.lock"),
        f"decoded pictures in {folder}",
        lambda: _open(stem, source.fingerprint, size),
        lambda: _decode_to(stem, source, size),
    )
    for name, reason in cache.skipped:
        source.unread.stop_if_strict(name, reason)
    return cache


def _open(stem: Path, fingerprint: str, size: int) -> PixelCache:
    """Open the cache at `stem`. Raises one of `files.UNUSABLE` if there is none, it is damaged, or of other rows."""
    facts = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    pixels = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    rows = tuple(facts["rows"])
    if facts["fingerprint"] != fingerprint or pixels.shape != (len(rows), size, size, 3):
        raise ValueError(f"{stem} holds other pictures")
    if facts["skipped"] and facts.get("max_pixels") != pixel_limit():
        raise ValueError(f"{stem} was made with another limit on pixels")
    return PixelCache(pixels, rows, tuple((name, reason) for name, reason in facts["skipped"]))


def _decode_to(stem: Path, source: CaptionedImages, size: int) -> None:
    rows: list[int] = []
    skipped: list[tuple[str, str]] = []
    with atomic_file(stem.with_suffix(".npy")) as part, part.open("wb") as file:
        _write_header(file, len(source), size)
        body = file.tell()
        # Written, not mapped: a full disk under a mapped file kills the process instead of raising.
        for index, pixels, reason in _decoded(source, size):
            if pixels is None:
                skipped.append((source.name(index), reason))
            else:
                file.write(pixels)
                rows.append(index)
        if not rows:
            name, reason = skipped[0]
            raise DataError(f"{source.origin}: none of its {len(source)} pictures can be read; {name}: {reason}")
        file.seek(0)
        _write_header(file, len(rows), size)
        assert file.tell() == body, "the header has changed its length"
    facts = {"fingerprint": source.fingerprint, "rows": rows, "skipped": skipped, "max_pixels": pixel_limit()}
    with atomic_file(stem.with_suffix(".json")) as part:  # last: the cache counts as complete once this exists
        part.write_text(json.dumps(facts), encoding="utf-8")


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    kind = {
        "descr": npy.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (count, size, size, 3),
    }
    npy.write_array_header_1_0(file, kind)


def _decoded(source: CaptionedImages, size: int) -> Iterator[tuple[int, bytes | None, str]]:
    """Yield each row in order: its number and its pixels, or None and the reason."""

    def decode(index: int) -> tuple[int, bytes | None, str]:
        try:
            return index, resize_square(decode_image(source.contents(index), wanted=size), size).tobytes(), ""
        except ImageError as error:
            return index, None, str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), CHUNK):
            yield from pool.map(decode, range(start, min(start + CHUNK, len(source))))
