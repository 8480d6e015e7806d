"""Latents between latents: each cell's vector turns along the arc from one to the next (slerp)."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import UsageError

PARALLEL = 1e-6  # below this angle, or this close to opposite, an arc between two vectors has no direction


def interpolate_latents(latents: Tensor, between: int) -> Tensor:
    """Latents (F, d, h, w) with `between` more from each to the next: (F + (F - 1) * between, d, h, w).

    Spherical linear interpolation (Shoemake 1985) of each cell's vector, whose length changes linearly, so that none
    is shorter than those that the decoder knows. The given latents are among the result unchanged.

    Raises:
        UsageError: if `between` is negative.
    """
    if between < 0:
        raise UsageError(f"between must be a whole number from 0, not {between}")
    if not between or len(latents) < 2:
        return latents
    shares = torch.arange(1, between + 1, device=latents.device, dtype=latents.dtype) / (between + 1)
    pairs = itertools.pairwise(latents)
    parts = [torch.cat([a[None], _arc(a, b, shares)]) for a, b in pairs]  # (1 + between, d, h, w) each
    return torch.cat([*parts, latents[-1:]])


def _arc(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """Points at `shares` (S,) of the way from a to b, both (d, h, w), cell by cell: (S, d, h, w)."""
    share = shares[:, None, None, None]
    lengths = a.norm(dim=0, keepdim=True), b.norm(dim=0, keepdim=True)  # (1, h, w)
    unit_a, unit_b = F.normalize(a, dim=0), F.normalize(b, dim=0)
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=0), (unit_a + unit_b).norm(dim=0))  # (h, w), exact near 0 and pi
    straight = torch.lerp(a, b, share)  # (S, d, h, w)
    direction = (torch.sin((1 - share) * angle) * unit_a + torch.sin(share * angle) * unit_b) / torch.sin(angle)
    curved = direction * torch.lerp(*lengths, share)
    level = (angle < PARALLEL) | (angle > math.pi - PARALLEL) | (lengths[0][0] == 0) | (lengths[1][0] == 0)
    return torch.where(level, straight, curved)
