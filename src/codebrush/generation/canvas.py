"""A picture and what of it is to be painted in; the square window that a network draws, and the finished picture, out.

A mask is white where the picture is to change. The finished picture has the size of the canvas; away from the hole, but
for a narrow border that blends, its pixels are those it had.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.holes import filled_in
from codebrush.data.images import MAX_PIXELS, decode_image, to_tensor
from codebrush.errors import UsageError

Picture = Image.Image | str | Path
SIDES = ("left", "top", "right", "bottom")
CONTEXT = 1.5  # a window's side, in sides of the hole, so that what is around it is seen
BORDER = 16  # the blended border is the short side over this
WORK = 512  # pixels a side of a window are looked at, where the network's own size is not larger
WHITE = 128  # from this grey on a mask is white


@dataclass(frozen=True)
class Canvas:
    """`image` RGB and the `hole` in it (H, W) bool; `box` is the window: left, top, right, bottom, which may lie beyond
    the picture. `alpha` is the picture's own transparency, if it had any."""

    image: Image.Image
    hole: np.ndarray
    box: tuple[int, int, int, int]
    alpha: Image.Image | None = None

    @property
    def side(self) -> int:
        """Of the window, in the picture's pixels."""
        return self.box[2] - self.box[0]

    def view(self, size: int) -> tuple[Tensor, Tensor]:
        """The window as `size` pixels square, (3, S, S) in [0, 1], its hole filled smoothly, and how much of each pixel
        is hole (S, S), 0 to 1. What lies beyond the picture is hole as well."""
        work = min(self.side, max(WORK, 2 * size))  # of a large window a smaller one is looked at
        hole = _window(Image.fromarray(np.where(self.hole, 255, 0).astype(np.uint8)), self.box, 255, work)
        share = torch.from_numpy(np.asarray(hole, dtype=np.float32) / 255)[None]  # (1, work, work)
        pixels = filled_in(to_tensor(_window(self.image, self.box, 0, work)), share[0] > 0)
        if work != size:
            pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
            share = F.interpolate(share[None], (size, size), mode="area")[0]
        return pixels, share[0]

    def composed(self, drawn: Image.Image) -> Image.Image:
        """What was `drawn` of the window as it will show: around the hole stands what was there, at the same size."""
        size = drawn.width
        hole = _window(Image.fromarray(np.where(self.hole, 255, 0).astype(np.uint8)), self.box, 255, size)
        border = round(min(self.image.size) // BORDER * size / self.side)
        share = soft_edge(np.asarray(hole) >= WHITE, border)
        around = _window(self.image, self.box, 0, size)
        return Image.composite(drawn.convert("RGB"), around, Image.fromarray(np.rint(255 * share).astype(np.uint8)))

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The canvas with the hole, and a blend around it, taken from what was `drawn` of the window."""
        width, height = self.image.size
        left, top, right, bottom = self.box
        inside = (max(0, left), max(0, top), min(width, right), min(height, bottom))
        scale = drawn.width / self.side
        part = tuple((place - start) * scale for place, start in zip(inside, (left, top) * 2, strict=True))
        size = (inside[2] - inside[0], inside[3] - inside[1])
        drawn = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=part)  # pyright: ignore
        rows, columns = slice(inside[1], inside[3]), slice(inside[0], inside[2])
        share = soft_edge(self.hole[rows, columns], min(width, height) // BORDER)[..., None]  # (h, w, 1)
        pixels = np.asarray(self.image).copy()
        mixed = share * np.asarray(drawn, dtype=np.float32) + (1 - share) * pixels[rows, columns]
        pixels[rows, columns] = np.rint(mixed).astype(np.uint8)  # where the share is 0, the very bytes that were there
        finished = Image.fromarray(pixels)
        if self.alpha is not None:
            finished.putalpha(Image.fromarray(np.where(self.hole, 255, np.asarray(self.alpha)).astype(np.uint8)))
        return finished


def masked_canvas(picture: Picture, mask: Picture, least: int) -> Canvas:
    """A canvas whose hole is where `mask`, of the picture's size, is white. `least` is the smallest window's side."""
    image, alpha = _read(picture)
    grey = decode_image(mask).convert("L")
    if grey.size != image.size:
        theirs, ours = (f"{width} x {height}" for width, height in (grey.size, image.size))
        raise UsageError(f"the mask has {theirs} pixels and the picture {ours}: make them equal")
    return _canvas(image, alpha, np.asarray(grey) >= WHITE, least)


def boxed_canvas(picture: Picture, box: tuple[int, int, int, int], least: int) -> Canvas:
    """A canvas whose hole is the `box` x, y, width, height in pixels; what lies beyond the picture is left out."""
    image, alpha = _read(picture)
    x, y, width, height = box
    hole = np.zeros((image.height, image.width), dtype=bool)
    hole[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    if not hole.any():
        raise UsageError(
            f"the box {x},{y},{width},{height} holds nothing of a picture of {image.width} x {image.height}"
        )
    return _canvas(image, alpha, hole, least)


def extended_canvas(picture: Picture, extend: Mapping[str, int], least: int) -> Canvas:
    """A larger canvas: `extend` says how many pixels are added on which of SIDES, and they are the hole."""
    image, alpha = _read(picture)
    wrong = [side for side in extend if side not in SIDES]
    if wrong or min(extend.values(), default=0) < 0 or not any(extend.values()):
        raise UsageError(f"extend takes pixels for {', '.join(SIDES)}, like left=64: some, and none below 0")
    left, top, right, bottom = (extend.get(side, 0) for side in SIDES)
    width, height = image.width + left + right, image.height + top + bottom
    if width * height > MAX_PIXELS:
        raise UsageError(f"a picture of {width} x {height} pixels is too large: extend by less")
    hole = np.ones((height, width), dtype=bool)
    hole[top : top + image.height, left : left + image.width] = False
    larger = Image.new("RGB", (width, height))
    larger.paste(image, (left, top))
    seen = None if alpha is None else Image.new("L", (width, height), 255)
    if seen is not None and alpha is not None:
        seen.paste(alpha, (left, top))
    return _canvas(larger, seen, hole, least)


def whole_canvas(picture: Picture) -> Canvas:
    """A canvas without a hole, whose window is the square in the picture's middle."""
    image, alpha = _read(picture)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return Canvas(image, np.zeros((image.height, image.width), dtype=bool), (left, top, left + side, top + side), alpha)


def _read(picture: Picture) -> tuple[Image.Image, Image.Image | None]:
    """RGB, transparency over white, and the transparency."""
    kept = decode_image(picture, keep_mode=True)
    alpha = kept.convert("RGBA").getchannel("A") if kept.has_transparency_data else None
    return decode_image(picture).convert("RGB"), alpha


def _canvas(image: Image.Image, alpha: Image.Image | None, hole: np.ndarray, least: int) -> Canvas:
    if not hole.any():
        raise UsageError("the mask is empty: make white what is to be painted")
    if hole.all():
        raise UsageError("the mask covers the whole picture: leave some of it, or draw a new one with generate")
    return Canvas(image, hole, window_around(hole, least), alpha)


def window_around(hole: np.ndarray, least: int) -> tuple[int, int, int, int]:
    """The square window for a hole (H, W): left, top, right, bottom. It holds the whole hole with room around it, at
    least `least` pixels square where the picture has them, and stays within the picture as far as it can."""
    spans = [np.flatnonzero(hole.any(axis)) for axis in (0, 1)]  # columns, rows
    firsts, lasts = [int(span[0]) for span in spans], [int(span[-1]) + 1 for span in spans]
    extent = max(last - first for first, last in zip(firsts, lasts, strict=True))
    height, width = hole.shape
    side = max(extent, min(max(round(CONTEXT * extent), least), max(width, height)))
    starts = []
    for first, last, length in zip(firsts, lasts, (width, height), strict=True):
        start = (first + last - side) // 2
        starts.append((length - side) // 2 if side >= length else min(max(0, start), length - side))
    return starts[0], starts[1], starts[0] + side, starts[1] + side


def _window(image: Image.Image, box: tuple[int, int, int, int], beyond: int, size: int) -> Image.Image:
    """What the box shows, `size` pixels square, with the value `beyond` outside of the picture."""
    left, top, right, bottom = box
    side, width, height = right - left, *image.size
    inside = (max(0, left), max(0, top), min(width, right), min(height, bottom))
    places = [round((place - start) * size / side) for place, start in zip(inside, (left, top) * 2, strict=True)]
    window = Image.new(image.mode, (size, size), beyond if image.mode == "L" else (beyond,) * 3)
    shown = max(1, places[2] - places[0]), max(1, places[3] - places[1])
    window.paste(image.resize(shown, Image.Resampling.BOX, box=inside), (places[0], places[1]))
    return window


def soft_edge(hole: np.ndarray, border: int) -> np.ndarray:
    """A hole (H, W) as shares: 1 inside, falling evenly to 0 within `border` pixels outside, (H, W) float32."""
    half = border // 2
    share = torch.from_numpy(hole)[None, None].float()
    if half:
        for kernel in ((1, 2 * half + 1), (2 * half + 1, 1)):
            pad = (kernel[0] // 2, kernel[1] // 2)
            share = F.max_pool2d(share, kernel, 1, pad)
        for kernel in ((1, 2 * half + 1), (2 * half + 1, 1)):
            pad = (kernel[0] // 2, kernel[1] // 2)
            share = F.avg_pool2d(share, kernel, 1, pad, count_include_pad=False)
    return torch.where(torch.from_numpy(hole), 1.0, share[0, 0]).numpy()
