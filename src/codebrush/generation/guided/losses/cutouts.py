"""Cutouts: random views of a picture that CLIP is shown, with their crop sizes, moves, colour jitter and noise.

`draw_views` makes every random choice; `cut_out` makes none, so that the same views can be taken at once or in
micro-batches. A view's crop, perspective, shift, rotation and flip are one 3x3 matrix, and all views are sampled by one
`grid_sample`, which is differentiable.

`guide_options` holds the defaults, `presets` those of the classic notebook.
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

SEEDS = 2**63  # number of seeds that an int64 holds


@dataclass(frozen=True, eq=False)
class Views:
    """The random parameters of V views, as tensors on the CPU.

    `transforms` map a view's homogeneous coordinates to the picture's; both go from -1 to 1, edge to edge.
    """

    picture: Tensor  # (V,) int64: the picture of the batch that a view shows
    transforms: Tensor  # (V, 3, 3) float32
    colours: Tensor  # (V, 3, 4) float32: a matrix on (red, green, blue) and an offset
    noise: Tensor  # (V,) float32: standard deviation of each view's noise
    seeds: Tensor  # (V,) int64: of each view's noise, which therefore does not depend on the micro-batch

    def __len__(self) -> int:
        return len(self.picture)

    def rows(self, part: slice) -> "Views":
        """The views of a slice."""
        return Views(*(getattr(self, each.name)[part] for each in fields(self)))


def join_views(parts: Sequence[Views]) -> Views:
    """The views of all `parts`, one after the other."""
    return Views(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Views)))


def draw_views(options: GuideOptions, size: tuple[int, int], rng: np.random.Generator, picture: int = 0) -> Views:
    """Draw `options.cutouts` random views of the picture numbered `picture` in a batch of pictures of `size` (H, W).

    The picture is padded; then flipped, rotated about its centre, shifted and distorted, once for all views or once for
    each; then cropped to squares that lie within the padded picture.
    """
    count = options.cutouts
    crops = _draw_crops(options, size, rng)
    moves = _draw_moves(1 if options.shared_affine else count, options, size, rng)
    height, width = size
    to_unit = np.diag([2 / width, 2 / height, 1])  # from pixels, counted from the centre, to [-1, 1]
    return Views(
        picture=torch.full((count,), picture),
        transforms=torch.from_numpy((to_unit @ moves @ crops).astype(np.float32)),
        colours=draw_colour_jitter(count, options.colour, rng),
        noise=torch.from_numpy((options.noise * rng.random(count)).astype(np.float32)),
        seeds=torch.from_numpy(rng.integers(SEEDS, size=count, dtype=np.int64)),
    )


def _canvas(options: GuideOptions, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of the padded picture, in pixels."""
    height, width = size
    pad = 2 * options.pad * min(size)
    return height + pad, width + pad


def _draw_crops(options: GuideOptions, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Matrices (V, 3, 3) from a view's [-1, 1] to pixels, counted from the centre of the padded picture."""
    height, width = _canvas(options, size)
    share = rng.normal(options.crop_mean, options.crop_std, options.cutouts).clip(options.crop_min, options.crop_max)
    side = np.minimum(share * min(size), min(height, width))  # (V,)
    x, y = (rng.uniform(-0.5, 0.5, options.cutouts) * (length - side) for length in (width, height))
    return _matrices([[side / 2, 0, x], [0, side / 2, y], [0, 0, 1]])


def _draw_moves(count: int, options: GuideOptions, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Flip, rotation, shift and perspective as matrices (count, 3, 3) on pixels, counted from the picture's centre."""
    height, width = _canvas(options, size)
    mirror = np.where(rng.random(count) < options.flip, -1.0, 1.0)
    angle = np.deg2rad(rng.uniform(-options.turn, options.turn, count))
    right, down = (rng.uniform(-options.shift, options.shift, count) * length for length in (width, height))
    # The divisor of the perspective is 1 in the centre and differs from it by at most `perspective` in the corners of
    # the padded picture: below 1 the horizon lies outside.
    tilt_x, tilt_y = (rng.uniform(-options.perspective, options.perspective, count) / side for side in (width, height))
    flip = _matrices([[mirror, 0, 0], [0, 1, 0], [0, 0, 1]])
    rotation = _matrices([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shift = _matrices([[1, 0, right], [0, 1, down], [0, 0, 1]])
    tilt = _matrices([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
    return flip @ rotation @ shift @ tilt


def _matrices(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Matrices (n, 3, 3) of nine entries, each a number or an array (n,)."""
    entries = np.broadcast_arrays(*(entry for row in rows for entry in row))
    return np.stack(entries, axis=-1).reshape(-1, 3, 3)


def cut_out(images: Tensor, views: Views, side: int, options: GuideOptions) -> Tensor:
    """Take the views (V, 3, side, side) of `images` (B, 3, H, W), in their dtype but at least float32, not clamped."""
    wide = torch.promote_types(images.dtype, torch.float32)  # bf16 has too few digits for coordinates
    with torch.autocast(images.device.type, enabled=False):
        images = images.to(wide)
        if options.antialias:
            images = _pooled(images, options.crop_mean * min(images.shape[-2:]) / side)
        cutouts = _sample(images, views, side, options.beyond)
        if options.colour:
            colours = views.colours.to(cutouts)
            mix, offset = colours[:, :, :3], colours[:, :, 3:]  # (V, 3, 3), (V, 3, 1)
            cutouts = torch.baddbmm(offset, mix, cutouts.flatten(2)).unflatten(2, (side, side))
        if options.noise:
            strength = views.noise.to(cutouts).view(-1, 1, 1, 1)
            cutouts = torch.addcmul(cutouts, _noise(views.seeds, cutouts), strength)
    return cutouts


def _pooled(images: Tensor, shrinkage: float) -> Tensor:
    """Average over squares whose side is the power of two at or below `shrinkage`, so that no pixel is skipped."""
    if shrinkage < 2:
        return images
    factor = 2 ** int(math.log2(shrinkage))
    height, width = (max(1, round(length / factor)) for length in images.shape[-2:])
    # Adaptive, because plain pooling would cut off the remainder of a size that is not a multiple.
    return F.adaptive_avg_pool2d(images, (height, width))


def _sample(images: Tensor, views: Views, side: int, beyond: str) -> Tensor:
    """Sample every view at its place in its picture: (B, 3, H, W) -> (V, 3, side, side)."""
    grid = _grid(views.transforms.to(images), side)  # (V, side, side, 2)
    if beyond == "wrap":  # one ring of pixels from the other side lets the interpolation cross the seam
        length = torch.tensor(images.shape[:1:-1]).to(images)  # (W, H)
        grid = ((grid + 1).remainder(2) - 1) * (length / (length + 2))
        images, beyond = F.pad(images, (1, 1, 1, 1), mode="circular"), "border"
    # Consecutive views of one picture are sampled as one tall view, so that neither the picture nor its gradient is
    # copied for each of them.
    runs = views.picture.unique_consecutive(return_counts=True)[1]
    run = math.gcd(*runs.tolist())
    grid = grid.view(-1, run * side, side, 2)
    images = images[views.picture[::run].to(images.device)]  # (V / run, 3, H, W)
    tall = F.grid_sample(images, grid, padding_mode=beyond, align_corners=False)  # (V / run, 3, run * side, side)
    return tall.unflatten(2, (run, side)).transpose(1, 2).flatten(0, 1)


def _grid(transforms: Tensor, side: int) -> Tensor:
    """The place (x, y) in its picture, from -1 to 1, of each pixel of each view: (V, side, side, 2)."""
    x = (torch.arange(side).to(transforms) * 2 + 1) / side - 1
    across, down, place = transforms[..., None, None].unbind(2)  # each (V, 3, 1, 1)
    # Not a matrix product, because a GPU may compute that in TF32, with ten bits of mantissa.
    x, y, divisor = (across * x + down * x[:, None] + place).unbind(1)  # each (V, side, side)
    return torch.stack([x / divisor, y / divisor], dim=-1)


def _noise(seeds: Tensor, like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like` (V, 3, side, side), each view's from its own seed."""
    noise = torch.empty_like(like, memory_format=torch.contiguous_format)
    generator = torch.Generator(like.device)
    for view, seed in zip(noise, seeds.tolist(), strict=True):
        view.normal_(generator=generator.manual_seed(seed))
    return noise
