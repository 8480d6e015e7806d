"""A picture with a hole to paint: the square window that the network draws, and putting what it drew back in place.

A mask is white where the picture is to change. The finished picture has the size of the canvas; outside the hole, up to
a narrow border that is blended, its pixels stay as they were.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import MAX_PIXELS, WITH_PROFILE, Picture, decode_image, to_tensor
from codebrush.data.decoding.transparency import opacity
from codebrush.data.hole_filling import fill_holes
from codebrush.data.masks import LEAST_WHITE, mask_layer
from codebrush.errors import UsageError
from codebrush.warned import warn

SIDES = ("left", "top", "right", "bottom")
CONTEXT = 1.5  # side of a window over that of its hole, so that the surroundings are seen
BORDER = 16  # the blended border is the picture's short side over this
MOST_ADDED = 8  # times a side of the picture that may be added to it; of more it would be a few codes large
BLURRED = 4  # times enlarged, beyond which what is drawn is clearly blurred
WORK = 512  # a larger window is reduced to this many pixels a side, or to twice what is asked for


@dataclass(frozen=True)
class Canvas:
    """A picture and its hole.

    `image` is the picture in RGB, over white where it is transparent, and `original` the same in RGB or RGBA; `hole`
    (H, W) bool is what is to be painted. `box` is the square window: left, top, right, bottom, in the picture's pixels
    and maybe beyond its edges.
    """

    image: Image.Image
    hole: np.ndarray
    box: tuple[int, int, int, int]
    original: Image.Image

    @cached_property
    def weight(self) -> np.ndarray:
        """How much each pixel is painted, (H, W) float32: 1 in the hole, falling to 0 across the border around it."""
        return soft_edge(self.hole, min(self.image.size) // BORDER)

    @property
    def mask(self) -> Image.Image:
        """The hole, in white on black."""
        return Image.fromarray(self.hole.astype(np.uint8) * 255)

    @property
    def side(self) -> int:
        """Width and height of the window, in the picture's pixels."""
        return self.box[2] - self.box[0]

    def view(self, size: int) -> tuple[Tensor, Tensor]:
        """The window as the network sees it, `size` pixels square.

        Returns its pixels (3, S, S) in [0, 1], the hole smoothly filled from around, and how much of each pixel is
        hole, (S, S) from 0 to 1. What lies beyond the picture's edges counts as hole.
        """
        return self._seen(size, self.mask)

    def whole(self, size: int) -> Tensor:
        """The window's pixels as `view` has them, (3, S, S), but in the hole what the picture shows there."""
        return self._seen(size, Image.new("L", self.image.size))[0]

    def _seen(self, size: int, mask: Image.Image) -> tuple[Tensor, Tensor]:
        work = min(self.side, max(WORK, 2 * size))
        hole = _window(mask, self.box, 255, work)
        share = torch.from_numpy(np.asarray(hole, dtype=np.float32) / 255)[None]  # (1, work, work)
        pixels = fill_holes(to_tensor(_window(self.image, self.box, 0, work)), share[0] > 0)
        if work != size:
            pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
            share = F.interpolate(share[None], (size, size), mode="area")[0]
        return pixels, share[0]

    def composed(self, drawn: Image.Image) -> Image.Image:
        """The window as it will look when finished, at the size of `drawn`: the picture around, `drawn` in the hole."""
        size = drawn.width
        hole = _window(self.mask, self.box, 255, size)
        border = round(min(self.image.size) // BORDER * size / self.side)
        weight = soft_edge(np.asarray(hole) >= LEAST_WHITE, border)
        around = _window(self.image, self.box, 0, size)
        return Image.composite(drawn.convert("RGB"), around, Image.fromarray(np.rint(255 * weight).astype(np.uint8)))

    def before(self, size: int) -> Image.Image | None:
        """The window for `with_transparent_ground`, `size` pixels square, black in the hole; None if all is opaque.

        Where there was no picture, it counts as opaque.
        """
        alpha = opacity(self.original)
        if alpha is None:
            return None
        colours = np.where(self.hole[..., None], np.uint8(0), np.asarray(self.image))
        window = _window(Image.fromarray(colours), self.box, 0, size)
        window.putalpha(_window(alpha, self.box, 255, size))
        return window

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The whole picture, with `drawn` (the window, at any size) in the hole and blended in across the border.

        `drawn` may have transparency; without it the hole is opaque.
        """
        width, height = self.image.size
        left, top, right, bottom = self.box
        inside = (max(0, left), max(0, top), min(width, right), min(height, bottom))
        scale = drawn.width / self.side
        part = tuple((place - start) * scale for place, start in zip(inside, (left, top) * 2, strict=True))
        size = (inside[2] - inside[0], inside[3] - inside[1])
        new = np.asarray(drawn.resize(size, Image.Resampling.LANCZOS, box=part), dtype=np.float32)  # pyright: ignore
        rows, columns = slice(inside[1], inside[3]), slice(inside[0], inside[2])
        weight = self.weight[rows, columns, None]  # (h, w, 1)
        pixels = np.asarray(self.original).copy()
        before = pixels[rows, columns].astype(np.float32)
        old, drawn_share = (
            part[..., 3:] / 255 if part.shape[-1] == 4 else np.ones_like(weight) for part in (before, new)
        )
        shares = weight * drawn_share, (1 - weight) * old  # transparent pixels lend no colour to the blend
        visible = shares[0] + shares[1]
        mixed = shares[0] * new[..., :3] + shares[1] * before[..., :3]
        mixed = np.concatenate([mixed / np.maximum(visible, 1e-6), 255 * visible], axis=-1)[..., : before.shape[-1]]
        painted = weight[..., 0] > 0  # elsewhere the very bytes of the original stay
        pixels[rows, columns][painted] = np.rint(mixed[painted]).astype(np.uint8)
        finished = Image.fromarray(pixels)
        if "icc_profile" in self.original.info:
            finished.info["icc_profile"] = self.original.info["icc_profile"]
        return finished


def masked_canvas(picture: Picture, mask: Picture, min_side: int) -> Canvas:
    """A canvas whose hole is where `mask` is white; transparent pixels of a mask count as black.

    `min_side` is the smallest window's side in pixels.

    Raises:
        UsageError: if the mask has another size than the picture, or leaves nothing or all of it open.
        ImageError: if one of them cannot be read.
    """
    kept, grey = _read(picture), mask_layer(mask)
    if grey.size != kept.size:
        theirs, ours = (f"{width} x {height}" for width, height in (grey.size, kept.size))
        raise UsageError(f"the mask has {theirs} pixels and the picture {ours}: make them the same size")
    return _canvas(kept, np.asarray(grey) >= LEAST_WHITE, min_side)


def boxed_canvas(picture: Picture, box: tuple[int, int, int, int], min_side: int) -> Canvas:
    """A canvas whose hole is the `box` (x, y, width, height) in pixels, cut to the picture; see `masked_canvas`."""
    kept = _read(picture)
    try:
        x, y, width, height = map(operator.index, box)
    except (TypeError, ValueError):
        raise UsageError(f"box must be x, y, width and height in whole pixels, not {box}") from None
    hole = np.zeros((kept.height, kept.width), dtype=bool)
    hole[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    size = f"{kept.width} x {kept.height} pixels"
    if not hole.any():
        raise UsageError(f"the box {x},{y},{width},{height} lies outside the picture of {size}")
    if hole.sum() < width * height:
        inside = f"{hole.any(0).sum()} x {hole.any(1).sum()} pixels of it are painted"
        warn(f"the box {x},{y},{width},{height} reaches beyond the picture of {size}: {inside}; extend adds more")
    return _canvas(kept, hole, min_side)


def check_extend(picture: Picture, extend: Mapping[str, int]) -> None:
    """Raises UsageError if so much is added that the network would see next to nothing of the picture."""
    width, height = decode_image(picture).size
    for sides, length in ((("left", "right"), width), (("top", "bottom"), height)):
        added = sum(extend.get(side, 0) for side in sides)
        if added > MOST_ADDED * length:
            raise UsageError(
                f"extend adds {added} pixels at {' and '.join(sides)} to {length}, of which the network would see next "
                f"to nothing: add at most {MOST_ADDED * length} at a time"
            )


def warn_of_blur(canvas: Canvas, size: int) -> None:
    """Warn that what is drawn `size` pixels square will be enlarged so much that it is blurred."""
    if canvas.side > BLURRED * size:
        warn(
            f"the part is drawn as {size} x {size} pixels and enlarged to {canvas.side} x {canvas.side}, so it will be "
            "blurred: choose a smaller part, or reduce the picture first"
        )


def extended_canvas(picture: Picture, extend: Mapping[str, int], min_side: int) -> Canvas:
    """A larger canvas: `extend` gives the pixels to add on each of SIDES, which are the hole; see `masked_canvas`."""
    kept = _read(picture)
    try:
        left, top, right, bottom = sides = [operator.index(extend.get(side, 0)) for side in SIDES]
    except (TypeError, AttributeError):
        sides = [-1]
    if min(sides) < 0 or not any(sides) or set(extend) - set(SIDES):
        raise UsageError(
            f"extend takes the pixels to add on {', '.join(SIDES)}, like left=64: none below 0, and not all 0"
        )
    width, height = kept.width + left + right, kept.height + top + bottom
    if width * height > MAX_PIXELS:
        raise UsageError(f"a picture of {width} x {height} pixels is too large: extend by less")
    hole = np.ones((height, width), dtype=bool)
    hole[top : top + kept.height, left : left + kept.width] = False
    larger = Image.new(kept.mode, (width, height), (255,) * 4 if kept.mode == "RGBA" else 0)  # opaque: see `before`
    larger.paste(kept, (left, top))
    larger.info = kept.info
    return _canvas(larger, hole, min_side)


def warn_of_square(picture: Picture, size: int, remedy: str) -> None:
    """Warn that of a picture of other than `size` pixels a side only the middle comes back, at that size.

    Raises:
        ImageError: if the picture cannot be read.
    """
    width, height = decode_image(picture).size
    if (width, height) != (size, size):
        part = "the" if width == height else "the square in the middle of the"
        warn(f"{part} picture of {width} x {height} pixels comes back at the pack's {size} x {size}: {remedy}")


def whole_canvas(picture: Picture) -> Canvas:
    """A canvas without a hole, whose window is the largest square in the middle of the picture."""
    kept = _read(picture)
    side = min(kept.size)
    left, top = (kept.width - side) // 2, (kept.height - side) // 2
    hole = np.zeros((kept.height, kept.width), dtype=bool)
    return Canvas(decode_image(kept), hole, (left, top, left + side, top + side), kept)


def _read(picture: Picture) -> Image.Image:
    """RGBA if the picture has transparency, else RGB, with its colour profile if that still suits."""
    read = decode_image(picture, keep_mode=True)
    kept = read.convert("RGBA" if read.has_transparency_data else "RGB")
    profile = read.info.get("icc_profile") if read.mode in WITH_PROFILE else None
    kept.info = {} if profile is None else {"icc_profile": profile}
    return kept


def _canvas(original: Image.Image, hole: np.ndarray, min_side: int) -> Canvas:
    if not hole.any():
        raise UsageError("the mask is empty: make the part that is to be painted white")
    if hole.all():
        raise UsageError("the mask covers the whole picture: leave some of it black, or draw a new one with generate")
    return Canvas(decode_image(original), hole, window_around(hole, min_side), original)


def window_around(hole: np.ndarray, min_side: int) -> tuple[int, int, int, int]:
    """The square window for a hole (H, W): left, top, right, bottom.

    It holds the whole hole and CONTEXT around it, has at least `min_side` pixels a side where the picture has as many,
    and stays within the picture as far as it can.
    """
    spans = [np.flatnonzero(hole.any(axis)) for axis in (0, 1)]  # columns, rows
    firsts, lasts = [int(span[0]) for span in spans], [int(span[-1]) + 1 for span in spans]
    extent = max(last - first for first, last in zip(firsts, lasts, strict=True))
    height, width = hole.shape
    side = max(extent, min(max(round(CONTEXT * extent), min_side), max(width, height)))
    starts = []
    for first, last, length in zip(firsts, lasts, (width, height), strict=True):
        start = (first + last - side) // 2
        starts.append((length - side) // 2 if side >= length else min(max(0, start), length - side))
    return starts[0], starts[1], starts[0] + side, starts[1] + side


def _window(image: Image.Image, box: tuple[int, int, int, int], beyond: int, size: int) -> Image.Image:
    """The part of `image` in `box`, `size` pixels square, with the value `beyond` outside the picture."""
    left, top, right, bottom = box
    side, width, height = right - left, *image.size
    inside = (max(0, left), max(0, top), min(width, right), min(height, bottom))
    places = [round((place - start) * size / side) for place, start in zip(inside, (left, top) * 2, strict=True)]
    window = Image.new(image.mode, (size, size), beyond if image.mode == "L" else (beyond,) * 3)
    shown = max(1, places[2] - places[0]), max(1, places[3] - places[1])
    window.paste(image.resize(shown, Image.Resampling.BOX, box=inside), (places[0], places[1]))
    return window


def soft_edge(hole: np.ndarray, border: int) -> np.ndarray:
    """A hole (H, W) as weights (H, W) float32: 1 inside, falling evenly to 0 over `border` pixels around it."""
    half = border // 2
    weight = hole.astype(np.float32)
    if half:
        weight = (_box_sums(weight, half) > 0).astype(np.float32)  # grown by half the border, then blurred by as much
        weight = (_box_sums(weight, half) / _box_sums(np.ones_like(weight), half)).astype(np.float32)
    return np.where(hole, np.float32(1), weight)


def _box_sums(values: np.ndarray, half: int) -> np.ndarray:
    """For each of `values` (H, W) the sum over the square that reaches `half` pixels to each side, in constant time."""
    for axis in (0, 1):
        length = values.shape[axis]
        places = np.arange(length)
        total = np.insert(values.cumsum(axis, dtype=np.float64), 0, 0, axis)
        first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, length)
        values = total.take(last, axis) - total.take(first, axis)
    return values
