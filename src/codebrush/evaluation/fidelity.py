"""Measures how well a VQGAN reconstructs pictures, and how much of its codebook it uses."""

import torch
from torch import Tensor

from codebrush.data.structural_similarity import structural_similarity
from codebrush.errors import CodebrushError
from codebrush.models.perceptual import Perceptual
from codebrush.models.vqgan import VQGAN
from codebrush.optional import require

EXACT = 100.0  # dB that count for a picture without any error, whose PSNR is infinite


class Fidelity:
    """Collects reconstruction figures over batches of pictures.

    PSNR in dB (the mean over pictures, an exact copy counting as 100) and SSIM (Wang et al. 2004) as torchmetrics
    computes them, the distance of `perceptual` if it is given, and the usage (0 to 1) and perplexity of the codes over
    all pictures together.

    Raises:
        CodebrushError: if torchmetrics is not installed.
    """

    def __init__(self, vqgan: VQGAN, perceptual: Perceptual | None = None):
        require("torchmetrics", "measuring needs")
        from torchmetrics.functional.image import peak_signal_noise_ratio

        self._psnr_of, self.vqgan, self.perceptual = peak_signal_noise_ratio, vqgan, perceptual
        self._sums: dict[str, float] = dict.fromkeys(("psnr", "ssim", *(["perceptual"] if perceptual else [])), 0.0)
        self._counts = torch.zeros(vqgan.codebook_size, dtype=torch.int64)
        self.pictures = 0

    @torch.no_grad()
    def update(self, images: Tensor) -> Tensor:
        """Add images (B, 3, H, W) in [0, 1], on the VQGAN's device; returns the reconstructions, clamped to [0, 1]."""
        quantised, codes = self.vqgan.quantize(self.vqgan.encode(images))
        made = self.vqgan.decode(quantised).clamp(0, 1)
        each = {
            "psnr": self._psnr_of(made, images, data_range=1.0, dim=(1, 2, 3), reduction="none").clamp(max=EXACT),
            "ssim": structural_similarity(made, images),
        }
        if self.perceptual is not None:
            each["perceptual"] = self.perceptual(made, images)
        for name, values in each.items():
            self._sums[name] += values.double().sum().item()
        self._counts += torch.bincount(codes.flatten().cpu(), minlength=len(self._counts))
        self.pictures += len(images)
        return made

    def compute(self) -> dict[str, float]:
        """The figures over all pictures so far. Raises CodebrushError if there are none."""
        if not self.pictures:
            raise CodebrushError("there is no picture to measure: give one or more")
        share = self._counts.double() / self._counts.sum()
        means: dict[str, float] = {name: total / self.pictures for name, total in self._sums.items()}
        return {
            **means,
            "codebook_usage": (self._counts > 0).double().mean().item(),
            "codebook_perplexity": torch.special.entr(share).sum().exp().item(),
        }
