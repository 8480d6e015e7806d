"""Lays transparent pictures over a ground, and measures how much a picture shows."""

from typing import Any

from PIL import Image

WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)


def flattened(image: Image.Image, ground: tuple[int, int, int, int] = WHITE) -> Image.Image:
    """A picture of up to 8 bits a channel as RGB, its transparency over `ground`; RGB pictures are not copied."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image


def opacity(image: Image.Image) -> Image.Image | None:
    """The alpha of a picture (mode L, 255 is opaque); None if all of it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def contrast(image: Image.Image) -> int:
    """The most by which two pixels of an RGB or L picture differ in a channel, 0 to 255; 0 is one colour."""
    ranges: Any = image.getextrema()  # (low, high), or such a pair for each channel
    pairs = ranges if isinstance(ranges[0], tuple) else [ranges]
    return max(int(high - low) for low, high in pairs)
