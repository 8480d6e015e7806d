"""A picture and what of it is to be painted in; the square window that a network draws, and the finished picture, out.

A mask is white where the picture is to change. The finished picture has the size of the canvas; away from the hole, but
for a narrow border that blends, its pixels are those it had.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.hole_filling import fill_holes
from codebrush.data.images import MAX_PIXELS, WITH_PROFILE, decode_image, to_tensor
from codebrush.errors import UsageError

Picture = Image.Image | str | Path
SIDES = ("left", "top", "right", "bottom")
CONTEXT = 1.5  # a window's side, in sides of the hole, so that what is around it is seen
BORDER = 16  # the blended border is the short side over this
WORK = 512  # pixels a side of a window are looked at, where the network's own size is not larger
WHITE = 128  # from this grey on a mask is white


@dataclass(frozen=True)
class Canvas:
    """`image` RGB, seen over white, and the `hole` in it (H, W) bool; `box` is the window: left, top, right, bottom,
    which may lie beyond the picture. `kept` is the picture as it was, RGB or RGBA."""

    image: Image.Image
    hole: np.ndarray
    box: tuple[int, int, int, int]
    kept: Image.Image

    @cached_property
    def share(self) -> np.ndarray:
        """How much of each pixel (H, W) is painted: all of it in the hole, less and less in the border around."""
        return soft_edge(self.hole, min(self.image.size) // BORDER)

    @property
    def mask(self) -> Image.Image:
        """The hole in white."""
        return Image.fromarray(self.hole.astype(np.uint8) * 255)

    @property
    def side(self) -> int:
        """Of the window, in the picture's pixels."""
        return self.box[2] - self.box[0]

    def view(self, size: int) -> tuple[Tensor, Tensor]:
        """The window as `size` pixels square, (3, S, S) in [0, 1], its hole filled smoothly, and how much of each pixel
        is hole (S, S), 0 to 1. What lies beyond the picture is hole as well."""
        work = min(self.side, max(WORK, 2 * size))  # of a large window a smaller one is looked at
        hole = _window(self.mask, self.box, 255, work)
        share = torch.from_numpy(np.asarray(hole, dtype=np.float32) / 255)[None]  # (1, work, work)
        pixels = fill_holes(to_tensor(_window(self.image, self.box, 0, work)), share[0] > 0)
        if work != size:
            pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
            share = F.interpolate(share[None], (size, size), mode="area")[0]
        return pixels, share[0]

    def composed(self, drawn: Image.Image) -> Image.Image:
        """What was `drawn` of the window as it will show: around the hole stands what was there, at the same size."""
        size = drawn.width
        hole = _window(self.mask, self.box, 255, size)
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
        share = self.share[rows, columns, None]  # (h, w, 1)
        pixels = np.asarray(self.kept).copy()
        before = pixels[rows, columns].astype(np.float32)
        opacity = before[..., 3:] / 255 if before.shape[-1] == 4 else np.ones_like(share)
        weight = share + (1 - share) * opacity  # of what is seen: what is transparent lends no colour to the blend
        mixed = share * np.asarray(drawn, dtype=np.float32) + (1 - share) * opacity * before[..., :3]
        mixed = np.concatenate([mixed / np.maximum(weight, 1e-6), 255 * weight], axis=-1)[..., : before.shape[-1]]
        painted = share[..., 0] > 0  # elsewhere stay the very bytes that were there
        pixels[rows, columns][painted] = np.rint(mixed[painted]).astype(np.uint8)
        finished = Image.fromarray(pixels)
        if "icc_profile" in self.kept.info:
            finished.info["icc_profile"] = self.kept.info["icc_profile"]
        return finished


def masked_canvas(picture: Picture, mask: Picture, least: int) -> Canvas:
    """A canvas whose hole is where `mask`, of the picture's size, is white; what is transparent in it is black. `least`
    is the smallest window's side."""
    kept, layer = _read(picture), decode_image(mask, keep_mode=True)
    if layer.has_transparency_data:
        layer = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer.convert("RGBA"))
    grey = layer.convert("RGB").convert("L")
    if grey.size != kept.size:
        theirs, ours = (f"{width} x {height}" for width, height in (grey.size, kept.size))
        raise UsageError(f"the mask has {theirs} pixels and the picture {ours}: make them equal")
    return _canvas(kept, np.asarray(grey) >= WHITE, least)


def boxed_canvas(picture: Picture, box: tuple[int, int, int, int], least: int) -> Canvas:
    """A canvas whose hole is the `box` x, y, width, height in pixels; what lies beyond the picture is left out."""
    kept = _read(picture)
    x, y, width, height = box
    hole = np.zeros((kept.height, kept.width), dtype=bool)
    hole[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    if not hole.any():
        raise UsageError(f"the box {x},{y},{width},{height} holds nothing of a picture of {kept.width} x {kept.height}")
    return _canvas(kept, hole, least)


def extended_canvas(picture: Picture, extend: Mapping[str, int], least: int) -> Canvas:
    """A larger canvas: `extend` says how many pixels are added on which of SIDES, and they are the hole."""
    kept = _read(picture)
    wrong = [side for side in extend if side not in SIDES]
    if wrong or min(extend.values(), default=0) < 0 or not any(extend.values()):
        raise UsageError(f"extend takes pixels for {', '.join(SIDES)}, like left=64: some, and none below 0")
    left, top, right, bottom = (extend.get(side, 0) for side in SIDES)
    width, height = kept.width + left + right, kept.height + top + bottom
    if width * height > MAX_PIXELS:
        raise UsageError(f"a picture of {width} x {height} pixels is too large: extend by less")
    hole = np.ones((height, width), dtype=bool)
    hole[top : top + kept.height, left : left + kept.width] = False
    larger = Image.new(kept.mode, (width, height))
    larger.paste(kept, (left, top))
    larger.info = kept.info
    return _canvas(larger, hole, least)


def whole_canvas(picture: Picture) -> Canvas:
    """A canvas without a hole, whose window is the square in the picture's middle."""
    kept = _read(picture)
    side = min(kept.size)
    left, top = (kept.width - side) // 2, (kept.height - side) // 2
    hole = np.zeros((kept.height, kept.width), dtype=bool)
    return Canvas(decode_image(kept), hole, (left, top, left + side, top + side), kept)


def _read(picture: Picture) -> Image.Image:
    """RGBA where the picture has transparency, else RGB, with its colour profile where that still suits."""
    read = decode_image(picture, keep_mode=True)
    kept = read.convert("RGBA" if read.has_transparency_data else "RGB")
    profile = read.info.get("icc_profile") if read.mode in WITH_PROFILE else None
    kept.info = {} if profile is None else {"icc_profile": profile}
    return kept


def _canvas(kept: Image.Image, hole: np.ndarray, least: int) -> Canvas:
    if not hole.any():
        raise UsageError("the mask is empty: make white what is to be painted")
    if hole.all():
        raise UsageError("the mask covers the whole picture: leave some of it, or draw a new one with generate")
    return Canvas(decode_image(kept), hole, window_around(hole, least), kept)


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
    share = hole.astype(np.float32)
    if half:
        share = (_sums(share, half) > 0).astype(np.float32)  # grown by half of the border, then blurred by as much
        share = (_sums(share, half) / _sums(np.ones_like(share), half)).astype(np.float32)
    return np.where(hole, np.float32(1), share)


def _sums(values: np.ndarray, half: int) -> np.ndarray:
    """Over the square of up to `half` pixels to each side of each of `values` (H, W); as fast for any size of it."""
    for axis in (0, 1):
        length = values.shape[axis]
        places = np.arange(length)
        total = np.insert(values.cumsum(axis, dtype=np.float64), 0, 0, axis)
        first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, length)
        values = total.take(last, axis) - total.take(first, axis)
    return values
