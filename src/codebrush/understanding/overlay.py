"""A picture and heat maps in; one PNG-ready page of labelled panels with a colour bar out.

The colours are evenly spaced to the eye: equal steps in Oklab (Ottosson 2020), dark blue to bright yellow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from codebrush.understanding.relevance import TINY

PANEL = 192  # pixels a side
GAP, LINE, BAR = 12, 17, 14
MARGIN = 92  # beside the panels, for the colour bar and its words
LEVELS = 256
# The path of the colours in Oklab: lightness, chroma and hue (degrees) at even places along it.
PATH = ((0.24, 0.10, 275.0), (0.42, 0.17, 300.0), (0.58, 0.19, 355.0), (0.73, 0.17, 50.0), (0.93, 0.17, 105.0))
FAINTEST, STRONGEST = 0.35, 0.80  # how much the colour covers of the picture, at no heat and at full heat
DARKEST, LIGHTEST = 30, 170  # the greys of the picture under it: white would wash the colours out
INK, PALE_INK = "black", (96, 96, 96)
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Panel:
    """One map (h, w) of values 0 to 1 with its lines of text; None shows the picture by itself."""

    title: str
    note: str = ""
    heat: np.ndarray | None = None
    smooth: bool = True  # between the map's cells; a map of codes shows them as squares


@dataclass(frozen=True)
class Group:
    """Panels that begin a row of their own, under a heading as wide as the page."""

    heading: str
    panels: Sequence[Panel]


@cache
def colours() -> np.ndarray:
    """The `LEVELS` colours from cold to hot, (LEVELS, 3) uint8, each as far from the next in Oklab."""
    fine = np.linspace(0, len(PATH) - 1, 4 * LEVELS)
    lightness, chroma = (np.interp(fine, range(len(PATH)), [stop[i] for stop in PATH]) for i in (0, 1))
    hue = np.radians(np.interp(fine, range(len(PATH)), np.unwrap([stop[2] for stop in PATH], period=360)))
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    along = np.concatenate([[0], np.linalg.norm(np.diff(lab, axis=0), axis=1).cumsum()])
    even = np.linspace(0, along[-1], LEVELS)
    lab = np.stack([np.interp(even, along, lab[:, i]) for i in range(3)], axis=1)
    return _srgb(lab)


def _srgb(lab: np.ndarray) -> np.ndarray:
    """Oklab (N, 3) -> sRGB (N, 3) uint8, by the matrices of Ottosson's definition."""
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


def scaled(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Maps (h, w) as parts 0 to 1 of the way from each one's least to its largest value; a flat map becomes 0."""
    return [((part - part.min()) / (part.max() - part.min()).clamp(min=TINY)).float().cpu().numpy() for part in maps]


def page(picture: Image.Image, groups: Sequence[Group], columns: int = 4) -> Image.Image:
    """The panels row by row on white, each over the square `picture`, and the colour bar at the right."""
    columns = min(columns, max(len(group.panels) for group in groups))
    columns = max(columns, 2)  # room for words
    font = ImageFont.load_default(size=13)
    across, down = PANEL + GAP, 2 * LINE + PANEL + GAP
    headings = [_wrapped(group.heading, font, columns * across - GAP) for group in groups]
    heights = [
        LINE * len(lines) + GAP // 2 + down * -(-len(group.panels) // columns)
        for group, lines in zip(groups, headings, strict=True)
    ]
    sheet = Image.new("RGB", (GAP + columns * across + MARGIN, GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    base = picture.convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    top = GAP
    for group, lines, height in zip(groups, headings, heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((GAP, top + number * LINE), line, fill=INK, font=font)
        first = top + LINE * len(lines) + GAP // 2
        for number, panel in enumerate(group.panels):
            corner = GAP + number % columns * across, first + number // columns * down
            draw.text(corner, _cut(panel.title, font, PANEL), fill=INK, font=font)
            draw.text((corner[0], corner[1] + LINE), _cut(panel.note, font, PANEL), fill=PALE_INK, font=font)
            sheet.paste(overlay(base, panel), (corner[0], corner[1] + 2 * LINE))
        _draw_bar(sheet, GAP + columns * across, first + 2 * LINE, font)
        top += height
    return sheet


def overlay(base: Image.Image, panel: Panel) -> Image.Image:
    """The picture in grey under the panel's colours, which cover it the more the hotter they are."""
    if panel.heat is None:
        return base
    wanted = Image.Resampling.BICUBIC if panel.smooth else Image.Resampling.NEAREST
    heat = Image.fromarray(np.asarray(panel.heat, dtype=np.float32)).resize(base.size, wanted)
    values = np.clip(np.asarray(heat), 0, 1)  # (H, W)
    hot = colours()[np.rint(values * (LEVELS - 1)).astype(np.intp)].astype(np.float32)  # (H, W, 3)
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None] / 255  # (H, W, 1)
    share = (FAINTEST + (STRONGEST - FAINTEST) * values)[..., None]
    under = DARKEST + (LIGHTEST - DARKEST) * grey
    return Image.fromarray(np.rint(share * hot + (1 - share) * under).astype(np.uint8))


def _draw_bar(sheet: Image.Image, left: int, top: int, font: Font) -> None:
    bar = Image.fromarray(colours()[::-1, None]).resize((BAR, PANEL), Image.Resampling.NEAREST)
    sheet.paste(bar, (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + BAR, top + PANEL), outline=INK)
    words, beside = ("hottest", "place", "coldest", "place"), left + BAR + 6
    for word, down in zip(words, (0, LINE, PANEL - 2 * LINE, PANEL - LINE), strict=True):
        draw.text((beside, top + down), word, fill=INK, font=font)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """`text` broken between words into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, font, width) for line in lines]


def _cut(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
