"""Pictures (B, 3, H, W) in, many random views of them (V, 3, side, side) out, differentiable, for CLIP to judge.

`draw_views` makes every random choice; `see` makes none, so the same views can be seen at once or in micro-batches. A
view's crop, perspective, shift, turn and flip are one 3x3 matrix, and all views are sampled by one `grid_sample`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.colour_jitter import draw_colour_jitter
from codebrush.generation.guided.guide_options import GuideOptions

SEEDS = 2**63  # as many as an int64 holds


@dataclass(frozen=True, eq=False)
class Views:
    """What is random about V views; tensors on the CPU."""

    picture: Tensor  # (V,) int64: which picture of the batch a view looks at
    transforms: (
        Tensor  # (V, 3, 3) float32: a view's homogeneous coordinates to the picture's, both [-1, 1] edge to edge
    )
    colours: Tensor  # (V, 3, 4) float32: a matrix on (red, green, blue) and what is added to it
    noise: Tensor  # (V,) float32: standard deviation of each view's noise
    seeds: Tensor  # (V,) int64: of each view's noise, which therefore does not depend on the micro-batch

    def __len__(self) -> int:
        return len(self.picture)

    def rows(self, part: slice) -> "Views":
        """Some of the views."""
        return Views(*(getattr(self, each.name)[part] for each in fields(self)))


def join_views(parts: Sequence[Views]) -> Views:
    """The views of all `parts`, one after the other."""
    return Views(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Views)))


def draw_views(options: GuideOptions, size: tuple[int, int], rng: np.random.Generator, picture: int = 0) -> Views:
    """`options.cutouts` random views of number `picture` of a batch of pictures of `size` (H, W).

    The picture is padded; flipped, turned about its centre, shifted and tilted, once for all views or once for each;
    then square crops are taken that lie within the padded picture.
    """
    count = options.cutouts
    crops = _draw_crops(options, size, rng)
    moves = _draw_moves(1 if options.shared_affine else count, options, size, rng)
    height, width = size
    to_unit = np.diag([2 / width, 2 / height, 1])  # pixels from the centre -> [-1, 1]
    return Views(
        picture=torch.full((count,), picture),
        transforms=torch.from_numpy((to_unit @ moves @ crops).astype(np.float32)),
        colours=draw_colour_jitter(count, options.colour, rng),
        noise=torch.from_numpy((options.noise * rng.random(count)).astype(np.float32)),
        seeds=torch.from_numpy(rng.integers(SEEDS, size=count, dtype=np.int64)),
    )


def _canvas(options: GuideOptions, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of the padded picture."""
    height, width = size
    pad = 2 * options.pad * min(size)
    return height + pad, width + pad


def _draw_crops(options: GuideOptions, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A view's [-1, 1] to pixels from the centre of the padded picture: (V, 3, 3)."""
    height, width = _canvas(options, size)
    share = rng.normal(options.crop_mean, options.crop_std, options.cutouts).clip(options.crop_min, options.crop_max)
    side = np.minimum(share * min(size), min(height, width))  # (V,)
    x, y = (rng.uniform(-0.5, 0.5, options.cutouts) * (length - side) for length in (width, height))
    return _matrices([[side / 2, 0, x], [0, side / 2, y], [0, 0, 1]])


def _draw_moves(count: int, options: GuideOptions, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Where the padded picture's pixels are taken from, both in pixels from its centre: (count, 3, 3)."""
    height, width = _canvas(options, size)
    mirror = np.where(rng.random(count) < options.flip, -1.0, 1.0)
    angle = np.deg2rad(rng.uniform(-options.turn, options.turn, count))
    right, down = (rng.uniform(-options.shift, options.shift, count) * length for length in (width, height))
    # What perspective divides by is 1 in the centre and strays by at most `perspective` in the corners of the padded
    # picture: below 1 the horizon lies outside.
    tilt_x, tilt_y = (rng.uniform(-options.perspective, options.perspective, count) / side for side in (width, height))
    flip = _matrices([[mirror, 0, 0], [0, 1, 0], [0, 0, 1]])
    turn = _matrices([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shift = _matrices([[1, 0, right], [0, 1, down], [0, 0, 1]])
    tilt = _matrices([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
    return flip @ turn @ shift @ tilt


def _matrices(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """3x3 matrices (n, 3, 3) from nine entries that are numbers or (n,)."""
    entries = np.broadcast_arrays(*(entry for row in rows for entry in row))
    return np.stack(entries, axis=-1).reshape(-1, 3, 3)


def see(images: Tensor, views: Views, side: int, options: GuideOptions) -> Tensor:
    """The views (V, 3, side, side) of `images` (B, 3, H, W), in their type but at least float32, and not clamped."""
    wide = torch.promote_types(images.dtype, torch.float32)  # bf16 has too few digits for coordinates
    with torch.autocast(images.device.type, enabled=False):
        images = images.to(wide)
        if options.antialias:
            images = _pooled(images, options.crop_mean * min(images.shape[-2:]) / side)
        seen = _sample(images, views, side, options.beyond)
        if options.colour:
            colours = views.colours.to(seen)
            mix, offset = colours[:, :, :3], colours[:, :, 3:]  # (V, 3, 3), (V, 3, 1)
            seen = torch.baddbmm(offset, mix, seen.flatten(2)).unflatten(2, (side, side))
        if options.noise:
            seen = torch.addcmul(seen, _noise(views.seeds, seen), views.noise.to(seen).view(-1, 1, 1, 1))
    return seen


def _pooled(images: Tensor, shrinkage: float) -> Tensor:
    """`images` averaged over squares of the power of two at or below `shrinkage`, so that no pixel is skipped."""
    if shrinkage < 2:
        return images
    factor = 2 ** int(math.log2(shrinkage))
    height, width = (max(1, round(length / factor)) for length in images.shape[-2:])
    # Adaptive, because plain pooling would cut off what a size that is no multiple has over.
    return F.adaptive_avg_pool2d(images, (height, width))


def _sample(images: Tensor, views: Views, side: int, beyond: str) -> Tensor:
    """(B, 3, H, W) -> (V, 3, side, side): every view at its place in its picture."""
    grid = _grid(views.transforms.to(images), side)  # (V, side, side, 2)
    if beyond == "wrap":  # one ring of pixels from the other side lets the interpolation cross the seam
        length = torch.tensor(images.shape[:1:-1]).to(images)  # (W, H)
        grid = ((grid + 1).remainder(2) - 1) * (length / (length + 2))
        images, beyond = F.pad(images, (1, 1, 1, 1), mode="circular"), "border"
    # Views of one picture that follow each other are sampled as one tall view: the picture is not copied for each of
    # them, and nor is its gradient.
    runs = views.picture.unique_consecutive(return_counts=True)[1]
    run = math.gcd(*runs.tolist())
    grid = grid.view(-1, run * side, side, 2)
    images = images[views.picture[::run].to(images.device)]  # (V / run, 3, H, W)
    seen = F.grid_sample(images, grid, padding_mode=beyond, align_corners=False)  # (V / run, 3, run * side, side)
    return seen.unflatten(2, (run, side)).transpose(1, 2).flatten(0, 1)


def _grid(transforms: Tensor, side: int) -> Tensor:
    """Where each pixel of each view lies in its picture, (x, y) in [-1, 1]: (V, side, side, 2)."""
    x = (torch.arange(side).to(transforms) * 2 + 1) / side - 1
    across, down, place = transforms[..., None, None].unbind(2)  # each (V, 3, 1, 1)
    # Not a matrix product, which a GPU may round to ten bits.
    x, y, divisor = (across * x + down * x[:, None] + place).unbind(1)  # each (V, side, side)
    return torch.stack([x / divisor, y / divisor], dim=-1)


def _noise(seeds: Tensor, like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like` (V, 3, side, side), each view's from its own seed."""
    noise = torch.empty_like(like, memory_format=torch.contiguous_format)
    generator = torch.Generator(like.device)
    for view, seed in zip(noise, seeds.tolist(), strict=True):
        view.normal_(generator=generator.manual_seed(seed))
    return noise
