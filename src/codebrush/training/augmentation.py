"""Pictures -> slightly changed pictures: shift, zoom, turn and mirror in one resampling, colours in one product.

Mixed precision would round colours and places to three digits, so pictures are changed in float32 even within it.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.training.ranges import Share, Weight


@dataclass(frozen=True)
class Augmentation:
    """Largest changes: `shift` as a share of the side, `zoom` as a share of the size, `turn` in degrees.

    `mirror` is the chance of a left-right flip, 0 by default because captions may speak of sides. `colour` is how
    far contrast, saturation and brightness stray; red stays red up to about 0.3.
    """

    shift: Share = 0.0
    zoom: Share = 0.0
    turn: Weight = 0.0
    mirror: Share = 0.0
    colour: Share = 0.0


def draw_affine(count: int, how: Augmentation, rng: np.random.Generator) -> Tensor:
    """Random transforms (B, 2, 3) float32 in the coordinates of `affine_grid`."""
    angle = np.deg2rad(rng.uniform(-how.turn, how.turn, count))
    scale = np.exp(rng.uniform(-how.zoom, how.zoom, count))
    flip = np.where(rng.random(count) < how.mirror, -1.0, 1.0)
    x, y = (rng.uniform(-2 * how.shift, 2 * how.shift, count) for _ in range(2))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    rows = [[cos * flip, -sin, x], [sin * flip, cos, y]]
    return torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1)  # (2, 3, B) -> (B, 2, 3)


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Apply `colour` (B, 3, 4) to images (B, 3, H, W) in [0, 1], and keep them there."""
    colour = colour.to(images.device)
    with torch.autocast(images.device.type, enabled=False):
        mixed = torch.einsum("bij,bjhw->bihw", colour[:, :, :3], images) + colour[:, :, 3, None, None]
    return mixed.clamp(0, 1)


def move(images: Tensor, affine: Tensor) -> Tensor:
    """Resample (B, 3, H, W) through `affine` (B, 2, 3); what comes from outside repeats the border."""
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)  # (B, H, W, 2)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
