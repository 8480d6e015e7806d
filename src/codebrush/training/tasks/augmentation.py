"""Augmentation: shift, zoom, rotation, mirroring and warping in one resampling, colours in one matrix product.

Mixed precision would round colours and coordinates to three digits, so pictures are changed in float32 even within it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.colour_jitter import LUMA, draw_colour_jitter
from codebrush.training.field_types import Share, Weight

WARP_POINTS = 5  # along a side of the coarse grid
FILTER_SPREAD = 0.25  # standard deviation of the numbers of a random filter
ERASED = (0.15, 0.45)  # the least and the most of a picture's side that a box covers
GROUND = 0.9  # a colour counts as white where red, green and blue are above this, and fully so at 1
LINE_CONTRAST = 2.0  # a line is this many times as dark as neighbouring colours differ


@dataclass(frozen=True)
class Augmentation:
    """The largest changes: `shift` as a share of the side, `zoom` as a share of the size, `turn` (rotation) in degrees.

    `mirror` is the probability of a left-right flip, 0 by default because captions may mention left and right. `colour`
    is how far contrast, saturation and brightness vary; red stays red up to about 0.3.

    The rest only a CLIP uses, to recognise things in styles it has not seen: `hue` is the spread of a rotation of all
    hues in degrees, `warp` that of the points of a coarse grid as a share of the side. The others are probabilities:
    `texture` of a random 3 x 3 filter (Xu et al. 2021), which changes lines and surfaces and keeps shapes, `erase` of a
    box in one colour (Zhong et al. 2020), `grey` of losing all colour, `outline` of becoming dark lines on white, and
    `ground` of another colour in place of white.
    """

    shift: Share = 0.0
    zoom: Share = 0.0
    turn: Weight = 0.0
    mirror: Share = 0.0
    colour: Share = 0.0
    hue: Weight = 0.0
    warp: Share = 0.0
    texture: Share = 0.0
    erase: Share = 0.0
    grey: Share = 0.0
    outline: Share = 0.0
    ground: Share = 0.0


def draw_affine(count: int, how: Augmentation, rng: np.random.Generator) -> Tensor:
    """Random transforms (B, 2, 3) float32 in the coordinates of `affine_grid`."""
    angle = np.deg2rad(rng.uniform(-how.turn, how.turn, count))
    scale = np.exp(rng.uniform(-how.zoom, how.zoom, count))
    flip = np.where(rng.random(count) < how.mirror, -1.0, 1.0)
    x, y = (rng.uniform(-2 * how.shift, 2 * how.shift, count) for _ in range(2))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    rows = [[cos * flip, -sin, x], [sin * flip, cos, y]]
    return torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1)  # (2, 3, B) -> (B, 2, 3)


def draw_appearance(count: int, how: Augmentation, rng: np.random.Generator) -> dict[str, Tensor]:
    """Random changes of the colours and surfaces of `count` pictures for `change_appearance`, as `how` asks for them.

    "colour" (B, 3, 4), see `draw_colour_jitter`; "filters" (B, 3, 3), each summing to 1, which keeps flat colours;
    "boxes" (B, 4), the left, top, right and bottom of each in [0, 1], empty where nothing is erased; "fill" (B, 3);
    "outlined" (B,), 1 for pictures that become lines; "ground" (B, 3), the colour that replaces white.
    """
    changes = {"colour": draw_colour_jitter(count, how.colour, rng, how.hue)}
    if how.texture:
        chosen = rng.random((count, 1, 1)) < how.texture
        filters = np.where(chosen, rng.normal(0, FILTER_SPREAD, (count, 3, 3)), 0.0)
        filters[:, 1, 1] += 1 - filters.sum((1, 2))
        changes["filters"] = torch.from_numpy(filters.astype(np.float32))
    if how.erase:
        sides = rng.uniform(*ERASED, (count, 2)) * (rng.random((count, 1)) < how.erase)
        corners = rng.random((count, 2)) * (1 - sides)
        changes["boxes"] = torch.from_numpy(np.concatenate([corners, corners + sides], axis=1).astype(np.float32))
        changes["fill"] = torch.from_numpy(rng.random((count, 3)).astype(np.float32))
    if how.grey:
        matrix = changes["colour"][:, :, :3]
        luma = torch.from_numpy(LUMA.astype(np.float32))
        chosen = torch.from_numpy(rng.random((count, 1, 1)) < how.grey)
        changes["colour"][:, :, :3] = torch.where(chosen, (luma @ matrix)[:, None, :], matrix)
    if how.outline:
        changes["outlined"] = torch.from_numpy((rng.random(count) < how.outline).astype(np.float32))
    if how.ground:
        chosen = rng.random((count, 1)) < how.ground
        changes["ground"] = torch.from_numpy(np.where(chosen, rng.random((count, 3)), 1.0).astype(np.float32))
    return changes


def draw_warp(count: int, how: Augmentation, rng: np.random.Generator) -> Tensor | None:
    """Random shifts of the points of a coarse grid, (B, 2, 5, 5) in the coordinates of `affine_grid`; None without a
    warp."""
    if not how.warp:
        return None
    spread = 2 * how.warp * rng.random((count, 1, 1, 1))
    return torch.from_numpy((rng.normal(size=(count, 2, WARP_POINTS, WARP_POINTS)) * spread).astype(np.float32))


def change_appearance(images: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
    """Apply the changes that `draw_appearance` drew to images (B, 3, H, W) in [0, 1], which stay in [0, 1]. `changes`
    may hold other parts of a batch too."""
    with torch.autocast(images.device.type, enabled=False):
        if "filters" in changes:
            batch, channels, height, width = images.shape
            each = changes["filters"].to(images.device).repeat_interleave(channels, 0).unsqueeze(1)  # (3 B, 1, 3, 3)
            padded = F.pad(images, (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(0)
            images = F.conv2d(padded, each, groups=batch * channels).view(batch, channels, height, width).clamp(0, 1)
        if "outlined" in changes:
            images = torch.lerp(images, outlines(images), changes["outlined"].to(images.device)[:, None, None, None])
        if "ground" in changes:
            white = ((images.amin(1, keepdim=True) - GROUND) / (1 - GROUND)).clamp(0, 1)  # (B, 1, H, W)
            images = images - white * (1 - changes["ground"].to(images.device)[:, :, None, None])
        images = recolour(images, changes["colour"])
        if "boxes" in changes:
            left, top, right, bottom = (side[:, None, None] for side in changes["boxes"].to(images.device).T)
            y, x = ((torch.arange(side, device=images.device) + 0.5) / side for side in images.shape[2:])
            inside = (x >= left) & (x < right) & (y[:, None] >= top) & (y[:, None] < bottom)  # (B, H, W)
            images = torch.where(inside[:, None], changes["fill"].to(images.device)[:, :, None, None], images)
    return images


def outlines(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as dark lines on white, darker where the colours of neighbours differ more."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    change = torch.maximum(across, down).amax(1, keepdim=True)  # (B, 1, H, W)
    return (1 - LINE_CONTRAST * change).clamp(0, 1).expand_as(images)


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Apply the colour matrices `colour` (B, 3, 4) to images (B, 3, H, W) in [0, 1], and clamp them to [0, 1]."""
    colour = colour.to(images.device)
    with torch.autocast(images.device.type, enabled=False):
        mixed = torch.einsum("bij,bjhw->bihw", colour[:, :, :3], images) + colour[:, :, 3, None, None]
    return mixed.clamp(0, 1)


def move(images: Tensor, affine: Tensor, warp: Tensor | None = None) -> Tensor:
    """Resample images (B, 3, H, W) through `affine` (B, 2, 3) and a smooth `warp` (B, 2, g, g); beyond the edge the
    border is repeated."""
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)  # (B, H, W, 2)
        if warp is not None:
            bent = F.interpolate(warp.to(images.device), images.shape[2:], mode="bicubic", align_corners=True)
            grid = grid + bent.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
