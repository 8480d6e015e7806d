"""What both quantisers of the VQGAN share: their result, the straight-through gradient and the nearest code.

A quantiser replaces each vector of a latent (B, d, h, w) by a row of a codebook (K, d). In eval mode it is
deterministic and its state does not change.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SCORE_ELEMENTS = 2**24  # of the similarity matrix held at once: 64 MB


class Quantized(NamedTuple):
    """What a quantiser makes of a latent (B, d, h, w) in training."""

    quantised: Tensor  # (B, d, h, w); its gradient is handed straight through to the latent
    codes: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar, to be added to the training loss with weight 1
    distance: Tensor  # scalar without gradient: mean squared distance of latent and code, for the log


class _StraightThrough(torch.autograd.Function):
    """Returns `quantised` itself and not latent + (quantised - latent), whose rounding would differ from a look-up."""

    @staticmethod
    def forward(ctx: Any, quantised: Tensor, latent: Tensor) -> Tensor:
        ctx.dtype = latent.dtype
        return quantised.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype)


def straight_through(quantised: Tensor, latent: Tensor) -> Tensor:
    """The values of `quantised` with a gradient that goes to `latent` unchanged (Bengio et al. 2013).

    Both have the same shape, which is any.
    """
    return _StraightThrough.apply(quantised.detach(), latent)  # pyright: ignore[reportReturnType]


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The row of `codebook` (K, d) nearest to each of `vectors` (N, d) by Euclidean distance: (N,) int64."""
    # |v - c|^2 = |v|^2 - 2 (v.c - |c|^2 / 2), and |v|^2 is the same for all c.
    offset = codebook.square().sum(1) / -2  # (K,)
    rows = max(1, SCORE_ELEMENTS // len(codebook))  # of `vectors` at a time
    return torch.cat([torch.addmm(offset, part, codebook.T).argmax(1) for part in vectors.split(rows)])


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is so already."""
    return x if x.dtype == torch.float64 else x.float()
