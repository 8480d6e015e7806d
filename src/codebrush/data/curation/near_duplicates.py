"""Pictures in; small fingerprints that near-identical pictures share, and which of many are near duplicates, out.

The 64 bits of the perceptual hash say for each of the lowest frequencies of the grey picture whether it lies above
their median (the DCT hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). They
survive scaling and compression, and cannot tell a coin from a button: a very small copy of the picture decides.
"""

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
from PIL import Image

from codebrush.errors import UsageError

BITS = 64
GREY_SIDE = 32  # pixels of the grey picture whose frequencies are hashed
FREQUENCIES = 8  # of each direction
COPY_SIDE = 8  # fields of the small copy in each direction; its two values of hue have half as many
BRIGHTNESS_CELLS = COPY_SIDE**2
COPY_CELLS = BRIGHTNESS_CELLS + 2 * (COPY_SIDE // 2) ** 2
BRIGHTNESS_TOLERANCE, HUE_TOLERANCE = 16, 8  # of 255: the most by which any field of near duplicates may differ
KEY_BITS = 16  # of a band that are looked up: at most 65,536 buckets a band, however many pictures there are
MAX_DISTANCE = 15  # sixteen bands of four bits; beyond it, banding saves nothing


@dataclass(frozen=True)
class Fingerprint:
    """`pixels` is a 64-bit hash of the exact pixels and size, `shape` the perceptual hash, `copy` (96,) uint8."""

    pixels: int
    shape: int
    copy: np.ndarray


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB picture of any size."""
    digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=8)
    digest.update(image.tobytes())
    return Fingerprint(int.from_bytes(digest.digest()), perceptual_hash(image), _small_copy(image))


def _small_copy(image: Image.Image) -> np.ndarray:
    """8 x 8 values of brightness and twice 4 x 4 of hue (blue and red difference): (96,) uint8."""
    small = image.resize((COPY_SIDE, COPY_SIDE), Image.Resampling.BOX).convert("YCbCr")
    brightness, *hues = small.split()
    parts = [brightness, *(hue.resize((COPY_SIDE // 2, COPY_SIDE // 2), Image.Resampling.BOX) for hue in hues)]
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def perceptual_hash(image: Image.Image) -> int:
    """64 bits (0 to 2^64 - 1), few of which differ between pictures that look alike."""
    small = image.convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BICUBIC)
    grey = np.asarray(small, dtype=np.float64)  # (32, 32)
    waves = _COSINES @ grey @ _COSINES.T  # (8, 8): the lowest frequencies, the mean brightness first
    # In whole levels of grey: a fainter wave is left by compressing as often as not, and would make bits of chance.
    low = np.round(waves).reshape(-1)  # (64,)
    bits = low > np.median(low[1:])
    bits[0] = False  # brightness is what near duplicates may differ in
    return int.from_bytes(np.packbits(bits).tobytes())


def _cosines() -> np.ndarray:
    """The first rows of the cosine transform (type II) of GREY_SIDE values: (8, 32)."""
    place = (np.arange(GREY_SIDE) + 0.5) / GREY_SIDE
    return np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * place[None, :]) / GREY_SIDE


_COSINES = _cosines()


class NearIndex:
    """Finds, for one picture after the other, an earlier one that looks alike.

    The hash is cut into one band more than bits may differ: two hashes within `distance` agree in at least one band
    (pigeonhole), so that only pictures of an equal band are compared and none is missed. Costs 4 bytes a band and
    picture that was added.
    """

    def __init__(self, shapes: np.ndarray, copies: np.ndarray, distance: int) -> None:
        """`shapes` (N,) uint64 and `copies` (N, 96) uint8 of all pictures; `distance` in bits, 0 to 15."""
        if not 0 <= distance <= MAX_DISTANCE:
            raise UsageError(f"near duplicates may differ in 0 to {MAX_DISTANCE} of {BITS} bits, not {distance}")
        self.shapes, self.copies, self.distance = shapes, copies, distance
        self._tolerance = np.full(COPY_CELLS, HUE_TOLERANCE, np.int16)  # (96,)
        self._tolerance[:BRIGHTNESS_CELLS] = BRIGHTNESS_TOLERANCE
        edges = np.linspace(0, BITS, distance + 2).round().astype(int)
        widths = np.diff(edges).clip(max=KEY_BITS)
        self._bands = [(int(low), (1 << int(width)) - 1) for low, width in zip(edges, widths, strict=False)]
        self._buckets: list[dict[int, array[int]]] = [{} for _ in self._bands]

    def find(self, row: int) -> int | None:
        """The first added picture, of those in the first band that has any, that looks like picture `row`."""
        own = self.shapes[row]
        copy = self.copies[row].astype(np.int16)  # (96,)
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            bucket = buckets.get((int(own) >> shift) & mask)
            if bucket is None:
                continue
            others = np.array(bucket)  # (K,)
            others = others[np.bitwise_count(self.shapes[others] ^ own) <= self.distance]
            apart = np.abs(self.copies[others].astype(np.int16) - copy)  # (K, 96)
            others = others[(apart <= self._tolerance).all(axis=1)]
            if len(others):
                return int(others[0])
        return None

    def add(self, row: int) -> None:
        """Let picture `row` be found."""
        own = int(self.shapes[row])
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            buckets.setdefault((own >> shift) & mask, array("I")).append(row)
