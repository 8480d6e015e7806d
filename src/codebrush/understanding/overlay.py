"""Draws heat maps over a picture: a page of labelled panels with a colour bar.

The colour map is perceptually uniform: equal steps in Oklab (Ottosson 2020), from dark blue to bright yellow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from codebrush.data.text_layout import Font, cut, wrapped
from codebrush.understanding.relevance import TINY

PANEL = 192  # pixels a side
GAP, LINE, BAR = 12, 17, 14
MARGIN = 92  # at the right of the panels, for the colour bar and its labels
COLUMNS = 4
LEVELS = 256
# The colour map's path through Oklab: lightness, chroma and hue (degrees) at equally spaced stops.
PATH = ((0.24, 0.10, 275.0), (0.42, 0.17, 300.0), (0.58, 0.19, 355.0), (0.73, 0.17, 50.0), (0.93, 0.17, 105.0))
FAINTEST, STRONGEST = 0.35, 0.80  # opacity of the colours at no heat and at full heat
DARKEST, LIGHTEST = 30, 170  # range of grey of the picture underneath: white would wash the colours out
INK, PALE_INK, WARNING_INK = "black", (96, 96, 96), (176, 0, 0)


@dataclass(frozen=True)
class Panel:
    """A map (h, w) of values 0 to 1 with two lines of text; with None for the map, the picture alone."""

    title: str
    note: str = ""
    heat: np.ndarray | None = None
    smooth: bool = True  # False draws the map's cells as squares


@dataclass(frozen=True)
class Group:
    """Panels that start on a new row, under a heading, above which a warning may stand in red."""

    heading: str
    panels: Sequence[Panel]
    warning: str = ""


@cache
def colour_map() -> np.ndarray:
    """The `LEVELS` sRGB colours from cold to hot, (LEVELS, 3) uint8, at equal distances in Oklab."""
    fine = np.linspace(0, len(PATH) - 1, 4 * LEVELS)
    lightness, chroma = (np.interp(fine, range(len(PATH)), [stop[i] for stop in PATH]) for i in (0, 1))
    hue = np.radians(np.interp(fine, range(len(PATH)), np.unwrap([stop[2] for stop in PATH], period=360)))
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    along = np.concatenate([[0], np.linalg.norm(np.diff(lab, axis=0), axis=1).cumsum()])
    even = np.linspace(0, along[-1], LEVELS)
    lab = np.stack([np.interp(even, along, lab[:, i]) for i in range(3)], axis=1)
    return _srgb(lab)


def _srgb(lab: np.ndarray) -> np.ndarray:
    """Oklab (N, 3) -> sRGB (N, 3) uint8, with the matrices of Ottosson 2020."""
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def normalised_maps(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Each map (h, w) rescaled from its own least and largest values to 0 and 1; a constant map becomes 0."""
    return [((part - part.min()) / (part.max() - part.min()).clamp(min=TINY)).float().cpu().numpy() for part in maps]


def render_page(picture: Image.Image, groups: Sequence[Group]) -> Image.Image:
    """All panels, row by row on white, each over `picture`, with colour bars at the right."""
    columns = min(COLUMNS, max(len(group.panels) for group in groups))
    columns = max(columns, 2)  # room for the headings
    font = ImageFont.load_default(size=13)
    across, down = PANEL + GAP, 2 * LINE + PANEL + GAP
    headings = []
    for group in groups:
        texts = ((group.warning, WARNING_INK), (group.heading, INK))
        lines = [(line, ink) for text, ink in texts if text for line in wrapped(text, font, columns * across - GAP)]
        headings.append(lines)
    heights = [
        LINE * len(lines) + GAP // 2 + down * -(-len(group.panels) // columns)
        for group, lines in zip(groups, headings, strict=True)
    ]
    sheet = Image.new("RGB", (GAP + columns * across + MARGIN, GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    scale = PANEL / max(picture.size)
    shown = round(picture.width * scale), round(picture.height * scale)
    base = picture.convert("RGB").resize(shown, Image.Resampling.LANCZOS)
    top = GAP
    for group, lines, height in zip(groups, headings, heights, strict=True):
        for number, (line, ink) in enumerate(lines):
            draw.text((GAP, top + number * LINE), line, fill=ink, font=font)
        first = top + LINE * len(lines) + GAP // 2
        for number, panel in enumerate(group.panels):
            corner = GAP + number % columns * across, first + number // columns * down
            draw.text(corner, cut(panel.title, font, PANEL), fill=INK, font=font)
            draw.text((corner[0], corner[1] + LINE), cut(panel.note, font, PANEL), fill=PALE_INK, font=font)
            sheet.paste(overlay(base, panel), (corner[0], corner[1] + 2 * LINE))
        _draw_bar(sheet, GAP + columns * across, first + 2 * LINE, font)
        top += height
    return sheet


def overlay(base: Image.Image, panel: Panel) -> Image.Image:
    """The panel's colours over the picture in grey; the hotter, the more opaque."""
    if panel.heat is None:
        return base
    wanted = Image.Resampling.BICUBIC if panel.smooth else Image.Resampling.NEAREST
    heat = Image.fromarray(np.asarray(panel.heat, dtype=np.float32)).resize(base.size, wanted)
    values = np.clip(np.asarray(heat), 0, 1)  # (H, W)
    hot = colour_map()[np.rint(values * (LEVELS - 1)).astype(np.intp)].astype(np.float32)  # (H, W, 3)
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None] / 255  # (H, W, 1)
    share = (FAINTEST + (STRONGEST - FAINTEST) * values)[..., None]
    under = DARKEST + (LIGHTEST - DARKEST) * grey
    return Image.fromarray(np.rint(share * hot + (1 - share) * under).astype(np.uint8))


def _draw_bar(sheet: Image.Image, left: int, top: int, font: Font) -> None:
    bar = Image.fromarray(colour_map()[::-1, None]).resize((BAR, PANEL), Image.Resampling.NEAREST)
    sheet.paste(bar, (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + BAR, top + PANEL), outline=INK)
    words, beside = ("hottest", "place", "coldest", "place"), left + BAR + 6
    for word, down in zip(words, (0, LINE, PANEL - 2 * LINE, PANEL - LINE), strict=True):
        draw.text((beside, top + down), word, fill=INK, font=font)
