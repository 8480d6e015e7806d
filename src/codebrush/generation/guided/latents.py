"""What guidance optimises: latent vectors, quantised with a straight-through gradient, or logits of the codes.

Either class maps a latent to the value that is optimised, and that value to what the decoder is given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.models.quantizers.quantizer import nearest_codes, straight_through
from codebrush.models.vqgan import VQGAN


def make_latent(vqgan: VQGAN, options: GuideOptions) -> "ContinuousLatent | CategoricalLatent":
    """The kind of latent that `options.latent` names."""
    return (CategoricalLatent if options.latent == "categorical" else ContinuousLatent)(vqgan, options)


class _Latent:
    """What both kinds share: the codebook (K, d) and its nearest codes."""

    def __init__(self, vqgan: VQGAN, options: GuideOptions):
        self.options = options
        self.codebook: Tensor = vqgan.quantizer.vectors.detach()
        self.unit = vqgan.config.l2_normalized and vqgan.config.quantizer == "vector"

    def resize(self, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Interpolate the value to another grid (h, w)."""
        return F.interpolate(value, grid, mode="bilinear")

    def codes(self, latent: Tensor) -> Tensor:
        """The codes (B, h, w) nearest to what was decoded (B, d, h, w)."""
        return self._nearest(latent)

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
    """Vectors (B, d, h, w). If quantised, the nearest codes are decoded and the vectors get the gradient."""

    def initial_value(self, latent: Tensor) -> Tensor:
        """The value of a latent (B, d, h, w): a copy, normalised if the codebook's vectors all have unit length."""
        return F.normalize(latent, dim=1) if self.unit else latent.clone()

    def vectors(self, value: Tensor) -> Tensor:
        """The value as differentiable vectors (B, d, h, w): itself."""
        return value

    def decoder_input(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """What is decoded (B, d, h, w), whose gradient is passed to the value unchanged, and the codes (B, h, w)."""
        codes = self._nearest(value)
        return (straight_through(self._look_up(codes, value), value) if self.options.quantise else value), codes

    @torch.no_grad()
    def clamp_(self, value: Tensor) -> None:
        """Clamp the value, in place, to the range of the codebook in each of its dimensions, if `clamp` is on."""
        if self.options.clamp:
            low, high = (bound.view(1, -1, 1, 1) for bound in torch.aminmax(self._like(value), dim=0))
            value.clamp_(low, high)


class CategoricalLatent(_Latent):
    """Logits of the codes (B, K, h, w). The likeliest codes are decoded; the gradient is that of the softmax."""

    def initial_value(self, latent: Tensor) -> Tensor:
        """Logits for a latent (B, d, h, w): larger for nearer codes, in units of the mean distance between codes."""
        if self.unit:
            latent = F.normalize(latent, dim=1)
        codebook = self._like(latent)
        rows = latent.movedim(1, -1)  # (B, h, w, d)
        with torch.autocast(latent.device.type, enabled=False):
            distance = rows.square().sum(-1, keepdim=True) - 2 * rows @ codebook.T + codebook.square().sum(1)
        scale = 2 * codebook.var(0).sum()  # the mean squared distance of two codes
        return (-4 * distance / scale).movedim(-1, 1).contiguous()  # (B, K, h, w)

    def vectors(self, value: Tensor) -> Tensor:
        """The expected vector under the softmax (B, d, h, w), differentiable."""
        shares = (value / self.options.code_temperature).softmax(1)  # (B, K, h, w)
        with torch.autocast(value.device.type, enabled=False):
            return (shares.movedim(1, -1) @ self._like(shares)).movedim(-1, 1)

    def decoder_input(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of the likeliest codes (B, d, h, w), with the softmax's gradient, and the codes (B, h, w)."""
        codes = value.argmax(1)
        return straight_through(self._look_up(codes, value), self.vectors(value)), codes

    def clamp_(self, value: Tensor) -> None:
        """Nothing: logits may have any value."""
