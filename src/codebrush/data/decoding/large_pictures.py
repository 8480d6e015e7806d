"""Limits on the pixels of a picture, and reading large pictures at a reduced size, so that memory stays bounded.

A photo of 108 megapixels takes 432 MB once it is decoded, and a CLIP sees 64 to 224 pixels of it. Where only a small
side is wanted, pictures over `LARGE_PIXELS` are reduced: JPEG and JPEG 2000 while they are decoded, others right after.
Smaller pictures are not touched, so that their pixels never depend on what is wanted.
"""

import math
import os
import threading

from PIL import Image, JpegImagePlugin

from codebrush.data.decoding.compression import PARAMETERS, jpeg2000_levels
from codebrush.errors import ImageError, UsageError

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; above it Pillow warns
MAX_REDUCED_PIXELS = 1 << 28  # of a JPEG that is reduced while it is decoded: covers phones of 200 megapixels
LARGE_PIXELS = 1 << 24
LIMIT_VARIABLE = "CODEBRUSH_MAX_PIXELS"
DETAIL = 4  # a reduced picture has at least this many times the wanted side: a further bicubic step hardly differs
ONE_LARGE_AT_A_TIME = threading.Lock()  # threads decode small pictures beside each other, but only one large one


def is_large(image: Image.Image) -> bool:
    """Whether a picture has more than `LARGE_PIXELS` pixels."""
    return image.width * image.height > LARGE_PIXELS


def reduction(image: Image.Image, wanted: int | None) -> int:
    """By how many pixels in each direction one is replaced if the shorter side needs only `wanted` pixels."""
    return 1 if wanted is None or not is_large(image) else max(1, min(image.size) // (wanted * DETAIL))


def check_pixels(image: Image.Image, factor: int = 1, max_pixels: int | None = None) -> None:
    """Check the size that a file states, before it is decoded.

    The limit is `max_pixels`, else the environment variable CODEBRUSH_MAX_PIXELS, else `MAX_PIXELS`, or
    `MAX_REDUCED_PIXELS` where the file is decoded at a reduced size.

    Raises:
        ImageError: if it has more pixels.
        UsageError: if the environment variable is no number of pixels.
    """
    limit = pixel_limit() if max_pixels is None else max_pixels
    if limit is None:
        limit = MAX_REDUCED_PIXELS if factor > 1 and _decodes_reduced(image) else MAX_PIXELS
    count = image.width * image.height
    if count > limit:
        raise ImageError(
            f"{image.width} x {image.height} is over the limit of {limit:,} pixels: "
            f"make it smaller, or raise the limit with --max-pixels {count} (or {LIMIT_VARIABLE}={count})"
        )


def pixel_limit() -> int | None:
    """The limit that CODEBRUSH_MAX_PIXELS sets; None without it. Raises UsageError if it is no number of pixels."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f'{LIMIT_VARIABLE} is "{text}": give the largest number of pixels, like {2 * MAX_PIXELS}')
    return int(text)


def reduce_while_decoding(image: Image.Image, factor: int) -> bool:
    """Let a file that is not loaded yet decode up to `factor` times smaller; False if its format cannot."""
    if not _decodes_reduced(image):
        return False
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
    else:
        image.reduce = min(int(math.log2(factor)), _levels(image))  # pyright: ignore[reportAttributeAccessIssue]
    return True


def reduced(image: Image.Image, factor: int) -> Image.Image:
    """A picture with the mean of `factor` x `factor` pixels for each; palettes and bitmaps become colours and greys."""
    if factor <= 1:
        return image
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return Image.Image.reduce(image, factor)  # Jpeg2KImageFile has another attribute of this name


def _decodes_reduced(image: Image.Image) -> bool:
    return isinstance(image, JpegImagePlugin.JpegImageFile) or (image.format == "JPEG2000" and _levels(image) > 0)


def _levels(image: Image.Image) -> int:
    stream = getattr(image, "fp", None)
    if stream is None:
        return 0
    place = stream.tell()
    stream.seek(0)
    levels = jpeg2000_levels(stream.read(PARAMETERS))
    stream.seek(place)
    return levels
