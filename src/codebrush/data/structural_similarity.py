"""Two batches of images -> how alike their structure is, for training and for measuring."""

from collections.abc import Callable

import torch
from torch import Tensor

from codebrush.errors import CodebrushError


def torchmetrics_ssim() -> Callable[..., object]:
    """Its function. Raises CodebrushError where torchmetrics is missing."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise CodebrushError("SSIM needs torchmetrics: pip install 'codebrush[eval]'") from error
    return structural_similarity_index_measure


def structural_similarity(images: Tensor, targets: Tensor) -> Tensor:
    """Images and targets (B, 3, H, W), linear to [0, 1] -> their SSIM (Wang et al. 2004) as torchmetrics has it, (B,);
    1 is alike. Raises CodebrushError where torchmetrics is missing."""
    measure = torchmetrics_ssim()
    with torch.autocast(images.device.type, enabled=False):  # variances are small differences of large numbers
        alike = measure(images.float(), targets.float(), data_range=1.0, reduction="none")
    return torch.as_tensor(alike)
