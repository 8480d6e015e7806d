"""Fills holes in pictures from their surroundings, so that nothing of the old content is left."""

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_holes(pixels: Tensor, hole: Tensor) -> Tensor:
    """Fill the pixels (..., 3, H, W) where `hole` (..., H, W) is True with means of their surroundings.

    Deeper inside a hole the means are coarser. A picture that is all hole becomes grey (0.5).
    """
    shape, pixels, hole = pixels.shape, pixels.reshape(-1, *pixels.shape[-3:]), hole.reshape(-1, 1, *hole.shape[-2:])
    kept = (~hole).to(pixels.dtype)
    colour, weight = pixels * kept, kept  # (B, 3, H, W), (B, 1, H, W)
    levels = []
    while max(weight.shape[-2:]) > 1:
        levels.append((colour, weight))
        colour, weight = (F.avg_pool2d(part, 2, ceil_mode=True) for part in (colour, weight))
    filled = torch.where(weight > 0, colour / weight.clamp(min=1e-6), 0.5)
    for colour, weight in reversed(levels):
        coarse = F.interpolate(filled, colour.shape[-2:], mode="bilinear")
        filled = torch.where(weight > 0, colour / weight.clamp(min=1e-6), coarse)
    return torch.where(hole, filled, pixels).reshape(shape)
