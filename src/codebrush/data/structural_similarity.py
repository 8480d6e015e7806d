"""The structural similarity (SSIM) of pictures, for training and for evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor

from codebrush.optional import require


def torchmetrics_ssim() -> Callable[..., object]:
    """The SSIM function of torchmetrics.

    Raises:
        CodebrushError: if torchmetrics is not installed.
    """
    require("torchmetrics", "SSIM needs")
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure


def structural_similarity(images: Tensor, targets: Tensor) -> Tensor:
    """The SSIM (Wang et al. 2004) of images and targets, both (B, 3, H, W) in [0, 1]: (B,), 1 for equal pictures.

    Raises:
        CodebrushError: if torchmetrics is not installed.
    """
    measure = torchmetrics_ssim()
    with torch.autocast(images.device.type, enabled=False):  # variances are small differences of large numbers
        similarity = measure(images.float(), targets.float(), data_range=1.0, reduction="none")
    return torch.as_tensor(similarity)
