"""The quantiser that chooses among its codes by predicted probabilities (DALL-E)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.quantizers.quantizer import Quantized, full_precision, straight_through


class GumbelQuantizer(nn.Module):
    """Draws each code from a predicted distribution by Gumbel-softmax (Jang et al. 2017), as DALL-E's dVAE does.

    In training the one-hot choice is a noisy arg-max with the gradient of the softmax at `temperature`, an attribute
    that training may lower step by step; the loss is `kl_weight` times the KL divergence of the distribution from the
    uniform one (Ramesh et al. 2021, section 2.1). In eval mode the choice is the arg-max without noise.

    Args:
        codebook_size: K.
        code_dim: d, the length of a code.
        kl_weight: weight of the divergence.
    """

    def __init__(self, codebook_size: int, code_dim: int, *, kl_weight: float = 5e-4):
        super().__init__()
        self.kl_weight = kl_weight
        self.temperature = 1.0
        self.proj = nn.Conv2d(code_dim, codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim))

    @property
    def vectors(self) -> Tensor:
        """The codebook (K, d) as `look_up` gives it."""
        return self.codebook

    def forward(self, latent: Tensor) -> Quantized:
        """Quantise a latent (B, d, h, w) with its loss, for training."""
        logits = full_precision(self.proj(latent))  # (B, K, h, w)
        share = logits.softmax(1)  # (B, K, h, w)
        divergence = (share * (share * len(self.codebook) + 1e-10).log()).sum(1).mean()
        quantised, codes = self._choose(logits)
        distance = F.mse_loss(latent.detach().float(), quantised.detach().float())
        return Quantized(quantised, codes, self.kl_weight * divergence, distance)

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """A latent (B, d, h, w) -> quantised (B, d, h, w) and codes (B, h, w); the gradient is that of the softmax."""
        quantised, codes = self._choose(full_precision(self.proj(latent)))
        return quantised.to(latent.dtype), codes

    def nearest(self, latent: Tensor) -> Tensor:
        """The most likely codes (B, h, w) int64 of a latent (B, d, h, w)."""
        return self.proj(latent).argmax(1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 -> their vectors (B, d, h, w)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, h, w) -> quantised (B, d, h, w) and codes (B, h, w)."""
        noisy = logits
        if self.training:
            noisy = logits - torch.empty_like(logits).exponential_().log()  # -log of an exponential is Gumbel noise
        soft = (noisy / self.temperature).softmax(1)  # (B, K, h, w)
        codes = soft.argmax(1)  # (B, h, w)
        hard = F.one_hot(codes, len(self.codebook)).movedim(-1, 1).to(soft.dtype)  # (B, K, h, w)
        with torch.autocast(logits.device.type, enabled=False):
            choice = straight_through(hard, soft).movedim(1, -1)  # (B, h, w, K)
            return (choice @ self.codebook.to(choice.dtype)).movedim(-1, 1), codes
