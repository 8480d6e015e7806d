"""Converts pictures of more than 8 bits a channel, where it is known which of their values is white.

Cameras and microscopes store 10 to 14 bits in files of 16, and label maps store 0 to 255: read as 0 to 65535 these are
black. White is what a TIFF file states, or else what the range of the values leaves no doubt about.
"""

from typing import Any

import numpy as np
from PIL import Image

from codebrush.errors import ImageError

FULL = 65_535
DIM = 16_383  # the largest value of 14 bits; if nothing is brighter, 16 bits are doubtful
ROWS = 256  # converted at once, which bounds the memory
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE = 258, 262, 281  # tags of TIFF
WHITE_IS_ZERO = 0
REMEDY = "save it with 8 bits a channel, or as TIFF with the tag MaxSampleValue"


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one channel of integers of over 8 bits, or of floats."""
    return image.mode.startswith(("I", "F"))


def deep_to_grey(image: Image.Image) -> Image.Image:
    """Convert a deep picture to 8 bits (mode L); floats are read as 0 to 1.

    Integers are read as 0 to the TIFF tags MaxSampleValue or BitsPerSample; without them as 0 to 65535, and in files of
    32 bits as 0 to 255 if none is above that, as Pillow does.

    Raises:
        ImageError: if values are out of range, or so low that white is unknown.
    """
    values = np.asarray(image)  # (H, W)
    low, high = (float(limit) for limit in (values.min(), values.max()))
    white, is_inverted = _white(image, high), _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > white:
        raise ImageError(f"mode {image.mode} with values beyond 0 to {white:g}; save it with 8 bits a channel")
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), ROWS):
        part = values[top : top + ROWS].astype(np.float64)
        part = white - part if is_inverted else part
        grey[top : top + ROWS] = np.rint(part * (255.0 / white))
    result = Image.fromarray(grey)
    result.info = dict(image.info)
    return result


def _white(image: Image.Image, high: float) -> float:
    """The value of white in a deep picture whose highest value is `high`."""
    if image.mode.startswith("F"):
        return 1.0
    if image.format == "PPM":  # states its white, and Pillow has scaled by it
        return FULL
    stated, bits = _tag(image, MAX_SAMPLE_VALUE), _tag(image, BITS_PER_SAMPLE)
    if stated is not None and max(high, 1) <= stated:
        return float(stated)
    if bits is not None and 8 < bits < 16:
        return float((1 << bits) - 1)
    if image.mode == "I" and high <= 255:
        return 255.0
    if 0 < high <= DIM:
        raise ImageError(f"its values end at {high:,.0f} of {FULL:,}, so white is unknown: {REMEDY}")
    return FULL


def _tag(image: Image.Image, number: int) -> int | None:
    """A whole number that a TIFF file states for all channels; None without it."""
    value: Any = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def has_deep_colours(image: Image.Image) -> bool:
    """Whether an opened file has colours of 16 bits, of which Pillow keeps the upper 8. Call it before loading."""
    return not is_deep(image) and any(";16" in str(tile) for tile in getattr(image, "tile", [])[:1])


def check_deep_colours(image: Image.Image) -> None:
    """Check a loaded picture whose colours had 16 bits.

    Raises:
        ImageError: if they are so low that white is unknown.
    """
    ranges: list[Any] = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
    highest = max(high for _, high in ranges)
    if highest <= DIM >> 8:
        raise ImageError(f"its values end below {(highest + 1) << 8:,} of {FULL:,}, so white is unknown: {REMEDY}")
