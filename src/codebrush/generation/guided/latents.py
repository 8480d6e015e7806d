"""A latent in; the value that guidance optimises, and what the decoder reads of it, out.

Two ways to hold a picture: vectors, which are quantised with a straight-through gradient, or logits of the codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.models.quantizer import nearest_codes, straight_through
from codebrush.models.vqgan import VQGAN


def make_latent(vqgan: VQGAN, options: GuideOptions) -> "ContinuousLatent | CategoricalLatent":
    """The parametrisation that `options` ask for."""
    return (CategoricalLatent if options.latent == "categorical" else ContinuousLatent)(vqgan, options)


class _Latent:
    """What both have in common: the codebook (K, d), and how the options bind the value to it."""

    def __init__(self, vqgan: VQGAN, options: GuideOptions):
        self.options = options
        self.codebook: Tensor = vqgan.quantizer.vectors.detach()
        self.unit = vqgan.config.l2_normalized and vqgan.config.quantizer == "vector"

    def resize(self, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """The value on another grid (h, w), interpolated."""
        return F.interpolate(value, grid, mode="bilinear")

    def _like(self, value: Tensor) -> Tensor:
        return self.codebook.to(value.dtype)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """The codes (B, h, w) nearest to vectors (B, d, h, w), in at least float32."""
        wide = torch.promote_types(vectors.dtype, torch.float32)
        rows = vectors.detach().to(wide).movedim(1, -1).flatten(0, 2)  # (B h w, d)
        if self.unit:
            rows = F.normalize(rows, dim=1)
        with torch.autocast(vectors.device.type, enabled=False):
            codes = nearest_codes(rows, self.codebook.to(wide))
        return codes.view(vectors.shape[0], *vectors.shape[2:])

    def _look_up(self, codes: Tensor, like: Tensor) -> Tensor:
        return F.embedding(codes, self._like(like)).movedim(-1, 1)  # (B, d, h, w)


class ContinuousLatent(_Latent):
    """Vectors (B, d, h, w). Quantised, the decoder reads the nearest codes and the gradient goes to the vectors."""

    def begin(self, latent: Tensor) -> Tensor:
        """The value of a latent (B, d, h, w): itself, at the codes' length where they all have one."""
        return F.normalize(latent, dim=1) if self.unit else latent.clone()

    def vectors(self, value: Tensor) -> Tensor:
        """The value as vectors (B, d, h, w), differentiable: itself."""
        return value

    def read(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder reads (B, d, h, w), whose gradient reaches the value as it is, and the codes (B, h, w)."""
        codes = self._nearest(value)
        return (straight_through(self._look_up(codes, value), value) if self.options.quantise else value), codes

    @torch.no_grad()
    def confine(self, value: Tensor) -> None:
        """Bring the value, in place, into the range that the codebook spans in each of its dimensions."""
        if self.options.clamp:
            low, high = (bound.view(1, -1, 1, 1) for bound in torch.aminmax(self._like(value), dim=0))
            value.clamp_(low, high)


class CategoricalLatent(_Latent):
    """Logits of the codes (B, K, h, w). The decoder reads the likeliest; the gradient is that of the softmax."""

    def begin(self, latent: Tensor) -> Tensor:
        """Logits of a latent (B, d, h, w): larger for nearer codes, in units of the mean distance between codes."""
        if self.unit:
            latent = F.normalize(latent, dim=1)
        codebook = self._like(latent)
        rows = latent.movedim(1, -1)  # (B, h, w, d)
        with torch.autocast(latent.device.type, enabled=False):
            distance = rows.square().sum(-1, keepdim=True) - 2 * rows @ codebook.T + codebook.square().sum(1)
        scale = 2 * codebook.var(0).sum()  # the mean squared distance of two codes
        return (-4 * distance / scale).movedim(-1, 1).contiguous()  # (B, K, h, w)

    def vectors(self, value: Tensor) -> Tensor:
        """The expected code (B, d, h, w), differentiable."""
        shares = (value / self.options.code_temperature).softmax(1)  # (B, K, h, w)
        with torch.autocast(value.device.type, enabled=False):
            return (shares.movedim(1, -1) @ self._like(shares)).movedim(-1, 1)

    def read(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest codes' vectors (B, d, h, w), with the gradient of the softmax, and the codes (B, h, w)."""
        codes = value.argmax(1)
        return straight_through(self._look_up(codes, value), self.vectors(value)), codes

    def confine(self, value: Tensor) -> None:
        """Logits are bound to no range."""
