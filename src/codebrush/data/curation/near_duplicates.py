"""Judges by small fingerprints whether pictures are the same or nearly the same, and which file of them is the best.

Each of the 64 bits of the perceptual hash says whether one of the lowest frequencies of the grey picture is above their
median (the DCT hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). The bits
survive scaling and compression, but are alike for a coin and a button: a tiny copy of the picture decides then. Both
are alike for two shots of a burst only if nothing in them has moved far. Screenshots with other small text are alike in
both: where these agree, the pictures are compared at a size at which lines of text show (`detail`).

A picture of one colour has nothing by which it could be told from another one of that colour, such as a white logo on
white. It is judged over black if it is transparent, and otherwise never the same as another.
"""

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from codebrush.data.decoding.transparency import BLACK, contrast, flattened, opacity
from codebrush.data.sources.system_folders import is_in_bin_or_thumbnails
from codebrush.errors import UsageError

JUDGED_SIDE = 256  # the shorter side that a fingerprint wants of large pictures; see `data.large_pictures`
BITS = 64
GREY_SIDE = 32  # pixels of the grey picture that is hashed
FREQUENCIES = 8  # in each direction
COPY_SIDE = 8  # pixels of the tiny copy's brightness in each direction; the two of colour have half as many
BRIGHTNESS_CELLS = COPY_SIDE**2
ALPHA_SIDE = 4
COLOUR_CELLS = BRIGHTNESS_CELLS + 2 * (COPY_SIDE // 2) ** 2
COPY_CELLS = COLOUR_CELLS + ALPHA_SIDE**2
# Of 255: the most by which any pixel of the copies may differ.
BRIGHTNESS_TOLERANCE, COLOUR_TOLERANCE, ALPHA_TOLERANCE = 16, 8, 32
OPAQUE = 255
NOTHING, LITTLE, ENOUGH = range(3)  # what a picture shows, see `Fingerprint`
PLAIN = 8  # levels of 255 by which the pixels of a picture of one colour differ at most
DETAIL_SIDE = 64
LEAST_DETAILED = 128  # pixels of the shorter side
# Of 4,096 pixels, the number that make pictures different if each differs by more than the tolerance, of 255. The
# sixteenth largest difference is 9 to 40 for screenshots with other text and 1 to 11 for copies (docs/log.md).
DETAIL_CELLS, DETAIL_TOLERANCE = 16, 13
TINT_SIDE = 16
# A part has another colour if one of 256 pixels differs by the tolerance, of 255; if the other pixels, at least this
# share, do not; and if this share of all differences in a channel points in one direction (docs/log.md).
TINT_TOLERANCE, STILL_SHARE, ONE_WAY = 6, 0.5, 0.8
KEY_BITS = 16  # of a band that are looked up: up to 65,536 buckets a band, for any number of pictures
MAX_DISTANCE = 15  # gives sixteen bands of four bits; with more bands of fewer bits nothing is saved


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of a picture.

    `pixels` hashes the size and the exact pixels over white, `alpha` the transparency (64 bits each; 0 if the picture
    is opaque). `shape` is the perceptual hash and `copy` (112,) uint8 the tiny copy. `shows` is NOTHING for a picture
    of one colour, which is never the same as another; LITTLE if only its exact pixels tell it from others, such as thin
    lines on white; else ENOUGH.
    """

    pixels: int
    alpha: int
    shape: int
    copy: np.ndarray
    shows: int

    @property
    def exact(self) -> int:
        """Equal for two pictures of the same size, pixels and transparency."""
        return self.pixels ^ self.alpha


def fingerprint(image: Image.Image) -> Fingerprint:
    """Compute the fingerprint of a picture of any size, of up to 8 bits a channel."""
    rgb, alpha = flattened(image), opacity(image)
    pixels, hidden = _hash(rgb), 0 if alpha is None else _hash(alpha)
    if alpha is not None and contrast(rgb) <= PLAIN:
        rgb = flattened(image, BLACK)
    shape, copy = perceptual_hash(rgb), _small_copy(rgb, alpha)
    if contrast(rgb) <= PLAIN:
        return Fingerprint(pixels, hidden, shape, copy, NOTHING)
    is_little = shape == 0 and int(np.ptp(copy[:BRIGHTNESS_CELLS])) <= BRIGHTNESS_TOLERANCE
    return Fingerprint(pixels, hidden, shape, copy, LITTLE if is_little else ENOUGH)


def _hash(image: Image.Image) -> int:
    """A hash of the size and every pixel, 64 bits."""
    digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=8)
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest())


def _small_copy(image: Image.Image, alpha: Image.Image | None) -> np.ndarray:
    """A tiny copy of an RGB picture: 8 x 8 pixels of brightness, 4 x 4 each of Cb, Cr and alpha, (112,) uint8."""
    small = image.resize((COPY_SIDE, COPY_SIDE), Image.Resampling.BOX).convert("YCbCr")
    brightness, *colours = small.split()
    parts = [brightness, *(colour.resize((COPY_SIDE // 2, COPY_SIDE // 2), Image.Resampling.BOX) for colour in colours)]
    size = (ALPHA_SIDE, ALPHA_SIDE)
    parts.append(Image.new("L", size, OPAQUE) if alpha is None else alpha.resize(size, Image.Resampling.BOX))
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def alike_copies(copies: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the tiny copies (K, 112) differ from `others`, (112,) or (K, 112), within the tolerances: (K,) bool.

    Transparency is compared where both have some: a picture laid over white is still a copy of it.
    """
    near = np.abs(copies.astype(np.int16) - others.astype(np.int16)) <= _TOLERANCE  # (K, 112)
    alphas = near[:, COLOUR_CELLS:].all(axis=1)
    opaque = (copies[..., COLOUR_CELLS:] == OPAQUE).all(-1) | (others[..., COLOUR_CELLS:] == OPAQUE).all(-1)
    return near[:, :COLOUR_CELLS].all(axis=1) & (alphas | opaque)


_TOLERANCE = np.repeat(
    np.array((BRIGHTNESS_TOLERANCE, COLOUR_TOLERANCE, ALPHA_TOLERANCE), np.int16),
    (BRIGHTNESS_CELLS, COLOUR_CELLS - BRIGHTNESS_CELLS, COPY_CELLS - COLOUR_CELLS),
)  # (112,)


def detail(image: Image.Image) -> np.ndarray | None:
    """The brightness of a picture at 64 x 64 pixels, (64, 64) uint8, in which a line of small text shows. None if its
    shorter side is below 128 pixels: what is left of small text then is not to be told from the traces of resizing.
    """
    if min(image.size) < LEAST_DETAILED:
        return None
    # Bilinear: each pixel overlaps its neighbours, so that edges between pixels are alike at every size of a copy.
    small = flattened(image).resize((DETAIL_SIDE, DETAIL_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small.convert("L"))


def same_detail(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two pictures that are alike as tiny copies also are in small areas, such as lines of text; true if one of
    them is too small to say. Other brightness over larger areas does not count.
    """
    if one is None or other is None:
        return True
    apart = one.astype(np.float32) - other
    areas = apart.reshape(COPY_SIDE, DETAIL_SIDE // COPY_SIDE, COPY_SIDE, -1).mean((1, 3))  # (8, 8)
    smooth = Image.fromarray(areas).resize((DETAIL_SIDE, DETAIL_SIDE), Image.Resampling.BILINEAR)
    local = np.abs(apart - np.asarray(smooth)).reshape(-1)
    return bool(np.partition(local, -DETAIL_CELLS)[-DETAIL_CELLS] <= DETAIL_TOLERANCE)


def tint(image: Image.Image) -> np.ndarray:
    """The colour of a picture without its brightness at 16 x 16 pixels: Cb and Cr, (2, 16, 16) uint8."""
    small = flattened(image).resize((TINT_SIDE, TINT_SIDE), Image.Resampling.BOX).convert("YCbCr")
    return np.stack([np.asarray(part) for part in small.split()[1:]])


def same_tint(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two pictures that are alike as tiny copies differ in colour only as copies do, and not in a small part
    that has another colour, such as skin of another tone; true if one of them is not known.

    Such a part differs in one direction and the rest is as it was, while the traces of compression point in all
    directions, and another white balance changes everything.
    """
    if one is None or other is None:
        return True
    apart = (one.astype(np.int16) - other).reshape(2, -1)  # (2, 256)
    most = np.abs(apart).max(0)  # (256,)
    if most.max() < TINT_TOLERANCE or np.mean(most <= 1) < STILL_SHARE:
        return True
    total = np.abs(apart).sum(1)
    channel = int(total.argmax())
    return bool(abs(int(apart[channel].sum())) < ONE_WAY * total[channel])


def quality(
    path: str, size: tuple[int, int], is_animated: bool, is_lossy: bool, has_alpha: bool, is_link: bool = False
) -> int:
    """A number that is higher for the better of two files of the same picture (63 bits).

    A file in a bin or among thumbnails comes after all others; then more pixels win, an animation, compression without
    loss, and transparency. Of a file and a link to it the file wins.
    """
    area = size[0] * size[1]
    place = 0 if is_in_bin_or_thumbnails(path) else 1
    return place << 62 | area << 4 | is_animated << 3 | (not is_lossy) << 2 | has_alpha << 1 | (not is_link)


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
        """`shapes` (N,) uint64 and `copies` (N, 112) uint8 of all pictures; `distance` in bits, 0 to 15."""
        if not 0 <= distance <= MAX_DISTANCE:
            raise UsageError(f"near duplicates may differ in 0 to {MAX_DISTANCE} of {BITS} bits, not {distance}")
        self.shapes, self.copies, self.distance = shapes, copies, distance
        edges = np.linspace(0, BITS, distance + 2).round().astype(int)
        widths = np.diff(edges).clip(max=KEY_BITS)
        self._bands = [(int(low), (1 << int(width)) - 1) for low, width in zip(edges, widths, strict=False)]
        self._buckets: list[dict[int, array[int]]] = [{} for _ in self._bands]

    def find(self, row: int, is_same: Callable[[int], bool] = lambda _: True) -> int | None:
        """An added picture that is nearly the same as picture `row`: the first one in the first band with any.

        `is_same` looks closer at each that the fingerprints find.
        """
        own = self.shapes[row]
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            bucket = buckets.get((int(own) >> shift) & mask)
            if bucket is None:
                continue
            others = np.array(bucket)  # (K,)
            others = others[np.bitwise_count(self.shapes[others] ^ own) <= self.distance]
            others = others[alike_copies(self.copies[others], self.copies[row])]
            found = next((int(other) for other in others if is_same(int(other))), None)
            if found is not None:
                return found
        return None

    def add(self, row: int) -> None:
        """Add picture `row` to those that can be found."""
        own = int(self.shapes[row])
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            buckets.setdefault((own >> shift) & mask, array("I")).append(row)
