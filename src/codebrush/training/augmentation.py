"""Pictures -> slightly moved pictures: shift, zoom, turn and mirror in one resampling."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Largest changes: `shift` as a share of the side, `zoom` as a share of the size, `turn` in degrees.

    `mirror` is the chance of a left-right flip, 0 by default because captions may speak of sides.
    """

    shift: float = 0.0
    zoom: float = 0.0
    turn: float = 0.0
    mirror: float = 0.0


def draw_affine(count: int, how: Augmentation, rng: np.random.Generator) -> Tensor:
    """Random transforms (B, 2, 3) float32 in the coordinates of `affine_grid`."""
    angle = np.deg2rad(rng.uniform(-how.turn, how.turn, count))
    scale = np.exp(rng.uniform(-how.zoom, how.zoom, count))
    flip = np.where(rng.random(count) < how.mirror, -1.0, 1.0)
    x, y = (rng.uniform(-2 * how.shift, 2 * how.shift, count) for _ in range(2))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    rows = [[cos * flip, -sin, x], [sin * flip, cos, y]]
    return torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1)  # (2, 3, B) -> (B, 2, 3)


def move(images: Tensor, affine: Tensor) -> Tensor:
    """Resample (B, 3, H, W) through `affine` (B, 2, 3); what comes from outside repeats the border."""
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
