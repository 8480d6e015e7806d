"""The peak signal-to-noise ratio of pictures, for the log."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_ERROR = 1e-10  # mean squared error that an exact picture counts as having: 100 dB


@torch.no_grad()
def psnr(images: Tensor, targets: Tensor, each: bool = False) -> Tensor:
    """The PSNR in dB of images and targets, (B, 3, H, W) in [0, 1]: that of the whole batch or, with `each`, the mean
    of those of its pictures."""
    errors = F.mse_loss(images, targets, reduction="none")
    errors = errors.mean((1, 2, 3)) if each else errors.mean()
    return (-10 * errors.clamp(min=LEAST_ERROR).log10()).mean()
