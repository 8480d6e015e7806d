"""A picture and heat maps in; one PNG-ready page of labelled panels with a colour bar out.

The colours are evenly spaced to the eye: equal steps in Oklab (Ottosson 2020), dark blue to bright yellow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PANEL = 192  # pixels a side
GAP, LINE, BAR = 12, 16, 14
LEVELS = 256
# The path of the colours in Oklab: lightness, chroma and hue (degrees) at even places along it.
PATH = ((0.24, 0.10, 275.0), (0.42, 0.17, 300.0), (0.58, 0.19, 355.0), (0.73, 0.17, 50.0), (0.93, 0.17, 105.0))
FAINTEST, STRONGEST = 0.35, 0.80  # how much the colour covers of the picture, at no heat and at full heat


@dataclass(frozen=True)
class Panel:
    """One map (h, w) of values 0 to 1 with its lines of text; None shows the picture by itself."""

    title: str
    note: str = ""
    heat: np.ndarray | None = None
    smooth: bool = True  # between the map's cells; a map of codes shows them as squares


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
    """Maps (h, w), 0 or more, as parts 0 to 1 of each one's own largest value; a map of nothing stays 0."""
    return [(part / part.max().clamp(min=1e-12)).float().cpu().numpy() for part in maps]


def page(picture: Image.Image, groups: Sequence[Sequence[Panel]], columns: int = 4) -> Image.Image:
    """The panels row by row on white, each over the square `picture`, and the colour bar at the right.

    Each group of panels begins a row of its own.
    """
    columns = min(columns, max(len(group) for group in groups))
    panels: list[Panel | None] = []
    for group in groups:
        panels += [*group, *[None] * (-len(group) % columns)]
    rows = len(panels) // columns
    width, height = PANEL + GAP, PANEL + 2 * LINE + GAP
    sheet = Image.new("RGB", (GAP + columns * width + BAR + 6 * GAP, GAP + rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    base = picture.convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    for number, panel in enumerate(panels):
        if panel is None:
            continue
        left, top = GAP + number % columns * width, GAP + number // columns * height
        draw.text((left, top), _cut(panel.title, font), fill="black", font=font)
        draw.text((left, top + LINE), _cut(panel.note, font), fill=(96, 96, 96), font=font)
        sheet.paste(overlay(base, panel), (left, top + 2 * LINE))
    _draw_bar(sheet, GAP + columns * width + GAP, GAP + 2 * LINE, font)
    return sheet


def overlay(base: Image.Image, panel: Panel) -> Image.Image:
    """The picture in grey under the panel's colours, which cover it the more the hotter they are."""
    if panel.heat is None:
        return base
    wanted = Image.Resampling.BICUBIC if panel.smooth else Image.Resampling.NEAREST
    heat = Image.fromarray(np.asarray(panel.heat, dtype=np.float32)).resize(base.size, wanted)
    values = np.clip(np.asarray(heat), 0, 1)  # (H, W)
    hot = colours()[np.rint(values * (LEVELS - 1)).astype(np.intp)].astype(np.float32)  # (H, W, 3)
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None]  # (H, W, 1)
    share = (FAINTEST + (STRONGEST - FAINTEST) * values)[..., None]
    return Image.fromarray(np.rint(share * hot + (1 - share) * grey).astype(np.uint8))


def _draw_bar(sheet: Image.Image, left: int, top: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    bar = Image.fromarray(colours()[::-1, None]).resize((BAR, PANEL), Image.Resampling.NEAREST)
    sheet.paste(bar, (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + BAR, top + PANEL), outline="black")
    for value, down in (("1", 0.0), ("0.5", 0.5), ("0", 1.0)):
        draw.text((left + BAR + 4, top + down * (PANEL - 14)), value, fill="black", font=font)
    draw.text((left - 2, top + PANEL + 4), "heat", fill="black", font=font)


def _cut(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= PANEL:
        return text
    while text and font.getlength(text + "...") > PANEL:
        text = text[:-1]
    return text.rstrip() + "..."
