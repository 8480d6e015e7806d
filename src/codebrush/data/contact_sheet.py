"""Lays out many pictures with their captions on one page."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from codebrush.data.decoding.transparency import flattened
from codebrush.data.fonts import fonts_for, visual_order
from codebrush.data.text_layout import wrapped
from codebrush.errors import CodebrushError


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str] | None = None, columns: int | None = None
) -> Image.Image:
    """Lay out `images` on a white page, row by row, each with its caption below.

    Pictures under 96 pixels are enlarged by a whole factor, and those over 512 reduced. Without `columns` the page is
    about square. A caption is drawn in an installed font if the built-in one lacks its letters (see `fonts_for`).

    Raises:
        CodebrushError: if there is no picture.
    """
    if not images:
        raise CodebrushError("a contact sheet needs at least one picture")
    tiles = [_tile(image) for image in images]
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    gap, line_height = 8, 15
    cell_width, picture_height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    fonts = fonts_for(captions or (), 12)
    texts = [wrapped(text, font, cell_width, most=3) for text, font in zip(captions or (), fonts, strict=True)]
    cell_height = picture_height + line_height * max((len(lines) for lines in texts), default=0)
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (gap + columns * (cell_width + gap), gap + rows * (cell_height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left = gap + (index % columns) * (cell_width + gap)
        top = gap + (index // columns) * (cell_height + gap)
        sheet.paste(tile, (left + (cell_width - tile.width) // 2, top))
        for line, text in enumerate(texts[index] if index < len(texts) else ()):
            place = left, top + picture_height + line_height * line
            draw.text(place, visual_order(text), fill="black", font=fonts[index])
    return sheet


def _tile(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    if longest < 96:
        factor = math.ceil(96 / longest)
        size = (image.width * factor, image.height * factor)
        return flattened(image).resize(size, Image.Resampling.NEAREST)
    tile = flattened(image).copy()
    tile.thumbnail((512, 512))
    return tile
