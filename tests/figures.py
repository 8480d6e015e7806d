"""Figures that several tests compare with."""

from collections.abc import Iterable

from torch import Tensor

from codebrush.evaluation.fidelity import Fidelity
from codebrush.models.vqgan import VQGAN


def reconstruction(vqgan: VQGAN, batches: Iterable[Tensor]) -> dict[str, float]:
    """The figures of `Fidelity` over batches of images (B, 3, H, W) in [0, 1]."""
    figures = Fidelity(vqgan)
    for images in batches:
        figures.update(images)
    return figures.compute()
