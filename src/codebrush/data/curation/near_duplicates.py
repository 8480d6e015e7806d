"""Finds near duplicates among many pictures by small fingerprints.

Each of the 64 bits of the perceptual hash says whether one of the lowest frequencies of the grey picture is above their
median (the DCT hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). The bits
survive scaling and compression, but are alike for a coin and a button: a tiny copy of the picture decides then.
"""

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
from PIL import Image

from codebrush.errors import UsageError

BITS = 64
GREY_SIDE = 32  # pixels of the grey picture that is hashed
FREQUENCIES = 8  # in each direction
COPY_SIDE = 8  # pixels of the tiny copy's brightness in each direction; the two of colour have half as many
BRIGHTNESS_CELLS = COPY_SIDE**2
COPY_CELLS = BRIGHTNESS_CELLS + 2 * (COPY_SIDE // 2) ** 2
BRIGHTNESS_TOLERANCE, COLOUR_TOLERANCE = 16, 8  # of 255: the most by which any pixel of the copies may differ
KEY_BITS = 16  # of a band that are looked up: up to 65,536 buckets a band, for any number of pictures
MAX_DISTANCE = 15  # gives sixteen bands of four bits; with more bands of fewer bits nothing is saved


@dataclass(frozen=True)
class Fingerprint:
    """`pixels` hashes the exact pixels and size (64 bits), `shape` is the perceptual hash, `copy` (96,) uint8."""

    pixels: int
    shape: int
    copy: np.ndarray


def fingerprint(image: Image.Image) -> Fingerprint:
    """Compute the fingerprint of an RGB picture of any size."""
    digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=8)
    digest.update(image.tobytes())
    return Fingerprint(int.from_bytes(digest.digest()), perceptual_hash(image), _small_copy(image))


def _small_copy(image: Image.Image) -> np.ndarray:
    """A tiny copy of a picture: 8 x 8 pixels of brightness and 4 x 4 each of Cb and Cr, (96,) uint8."""
    small = image.resize((COPY_SIDE, COPY_SIDE), Image.Resampling.BOX).convert("YCbCr")
    brightness, *colours = small.split()
    parts = [brightness, *(colour.resize((COPY_SIDE // 2, COPY_SIDE // 2), Image.Resampling.BOX) for colour in colours)]
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def perceptual_hash(image: Image.Image) -> int:
    """The DCT hash of a picture: 64 bits (0 to 2^64 - 1), few of which differ between similar pictures."""
    small = image.convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BICUBIC)
    grey = np.asarray(small, dtype=np.float64)  # (32, 32)
    waves = _COSINES @ grey @ _COSINES.T  # (8, 8): the lowest frequencies, first the mean brightness
    # Rounded to whole levels of grey: compression leaves weaker waves or not, so that their bits would be random.
    low = np.round(waves).reshape(-1)  # (64,)
    bits = low > np.median(low[1:])
    bits[0] = False  # near duplicates may differ in brightness
    return int.from_bytes(np.packbits(bits).tobytes())


def _cosines() -> np.ndarray:
    """The first rows of the discrete cosine transform (DCT-II) of GREY_SIDE values: (8, 32)."""
    place = (np.arange(GREY_SIDE) + 0.5) / GREY_SIDE
    return np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * place[None, :]) / GREY_SIDE


_COSINES = _cosines()


class NearIndex:
    """Finds for a picture an earlier one that is nearly the same.

    The hash is cut into one band more than bits may differ. Two hashes within `distance` agree in at least one band
    (pigeonhole principle), so that comparing the pictures that share a band misses none. Takes 4 bytes for each band of
    each picture that was added.
    """

    def __init__(self, shapes: np.ndarray, copies: np.ndarray, distance: int) -> None:
        """`shapes` (N,) uint64 and `copies` (N, 96) uint8 of all pictures; `distance` in bits, 0 to 15."""
        if not 0 <= distance <= MAX_DISTANCE:
            raise UsageError(f"near duplicates may differ in 0 to {MAX_DISTANCE} of {BITS} bits, not {distance}")
        self.shapes, self.copies, self.distance = shapes, copies, distance
        self._tolerance = np.full(COPY_CELLS, COLOUR_TOLERANCE, np.int16)  # (96,)
        self._tolerance[:BRIGHTNESS_CELLS] = BRIGHTNESS_TOLERANCE
        edges = np.linspace(0, BITS, distance + 2).round().astype(int)
        widths = np.diff(edges).clip(max=KEY_BITS)
        self._bands = [(int(low), (1 << int(width)) - 1) for low, width in zip(edges, widths, strict=False)]
        self._buckets: list[dict[int, array[int]]] = [{} for _ in self._bands]

    def find(self, row: int) -> int | None:
        """An added picture that is nearly the same as picture `row`: the first one in the first band with any."""
        own = self.shapes[row]
        copy = self.copies[row].astype(np.int16)  # (96,)
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            bucket = buckets.get((int(own) >> shift) & mask)
            if bucket is None:
                continue
            others = np.array(bucket)  # (K,)
            others = others[np.bitwise_count(self.shapes[others] ^ own) <= self.distance]
            difference = np.abs(self.copies[others].astype(np.int16) - copy)  # (K, 96)
            others = others[(difference <= self._tolerance).all(axis=1)]
            if len(others):
                return int(others[0])
        return None

    def add(self, row: int) -> None:
        """Add picture `row` to those that can be found."""
        own = int(self.shapes[row])
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            buckets.setdefault((own >> shift) & mask, array("I")).append(row)
