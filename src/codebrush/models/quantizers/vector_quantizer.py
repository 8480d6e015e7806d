"""The quantiser with a codebook of vectors, of which the nearest is taken (VQ-VAE)."""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.quantizers.kmeans import draw_indices, kmeans
from codebrush.models.quantizers.quantizer import Quantized, full_precision, nearest_codes, straight_through

CodebookUpdate = Literal["gradient", "ema"]

SAMPLES_PER_CODE = 8  # latents collected for k-means, a code
USAGE_DECAY = 0.97
DEAD_USAGE = 0.02  # of a fair share; a code falls below it after some 130 batches without use


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rows(latent: Tensor) -> Tensor:
    return latent.movedim(1, -1).flatten(0, -2)  # (B, d, h, w) -> (B h w, d)


class VectorQuantizer(nn.Module):
    """Quantises to the nearest code of a codebook (K, d): by Euclidean distance, or by angle if `l2_normalized`.

    VQ-VAE (van den Oord et al. 2017), with the normalised codes of ViT-VQGAN (Yu et al. 2022).

    Training begins with batches that pass through unquantised while their latents are collected; k-means over them then
    fills the codebook, which the buffer `initialised` says. From then on codes that go unused for long are moved to
    random latents of the current batch. With several processes every one must have a batch of the same shape; codebook
    and usage stay equal on all.

    The loss is |sg(z) - c|^2 + commitment |z - sg(c)|^2 (van den Oord et al. 2017, eq. 3), averaged over elements.

    Args:
        codebook_size: K.
        code_dim: d, the length of a code.
        l2_normalized: latents and codes are compared as unit vectors.
        commitment: weight of the pull of the latents towards their codes.
        update: "gradient" trains the codebook by the loss; with "ema" it follows running means instead (appendix A.1
            there), and the loss has no first term.
    """

    kept_whole = ("codebook",)  # changed here beside its gradient, so training must not cut it (see `shard`)
    initialised: Tensor
    share: Tensor
    sums: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        l2_normalized: bool = True,
        commitment: float = 0.25,
        update: CodebookUpdate = "gradient",
    ):
        super().__init__()
        self.l2_normalized, self.commitment, self.update = l2_normalized, commitment, update
        self.codebook = nn.Parameter(torch.empty(codebook_size, code_dim), requires_grad=update == "gradient")
        nn.init.uniform_(self.codebook, -1 / codebook_size, 1 / codebook_size)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.register_buffer("share", torch.ones(codebook_size))  # running use of each code, 1 = a fair share
        if update == "ema":
            self.register_buffer("sums", torch.zeros(codebook_size, code_dim))  # running sums that go with `share`
        self._collected: list[Tensor] = []

    def forward(self, latent: Tensor) -> Quantized:
        """Quantise a latent (B, d, h, w) with its loss, for training.

        With `l2_normalized` the latent itself is normalised, so that its gradient is that of the angle.
        """
        latent = full_precision(latent)
        if self.l2_normalized:
            latent = F.normalize(latent, dim=1)
        if self.training and not self.initialised:
            self._collect(_rows(latent.detach()))
            if not self.initialised:
                zero = self.codebook.sum() * 0  # keeps the codebook in the graph, as DDP requires
                return Quantized(latent, self.nearest(latent), zero, zero.detach())
        codes = self.nearest(latent)  # (B, h, w)
        chosen = self.look_up(codes)  # (B, d, h, w)
        if self.training:
            self._update_codes(_rows(latent.detach()), codes.flatten())
        distance = F.mse_loss(latent, chosen.detach())
        loss = self.commitment * distance
        if self.update == "gradient":
            loss = loss + F.mse_loss(chosen, latent.detach())
        return Quantized(straight_through(chosen, latent), codes, loss, distance.detach())

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """A latent (B, d, h, w) -> quantised (B, d, h, w) and codes (B, h, w); the gradient passes unchanged."""
        codes = self.nearest(latent)
        return straight_through(self.look_up(codes).to(latent.dtype), latent), codes

    @torch.no_grad()
    def nearest(self, latent: Tensor) -> Tensor:
        """The codes (B, h, w) int64 of a latent (B, d, h, w), normalised or not, computed in at least float32."""
        rows = full_precision(_rows(latent))  # (B h w, d)
        with torch.autocast(latent.device.type, enabled=False):
            return nearest_codes(rows, self.vectors.to(rows.dtype)).view(latent.shape[0], *latent.shape[2:])

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 -> their vectors (B, d, h, w)."""
        # Normalised after the look-up, so that the graph holds no tensor that the next batch's revival overwrites.
        chosen = F.embedding(codes, self.codebook)  # (B, h, w, d)
        return (F.normalize(chosen, dim=-1) if self.l2_normalized else chosen).movedim(-1, 1)

    @property
    def vectors(self) -> Tensor:
        """The codebook (K, d) as `look_up` gives it."""
        return F.normalize(self.codebook, dim=1) if self.l2_normalized else self.codebook

    def refill(self) -> None:
        """Fill the codebook by k-means again, from the latents of the next batches of training."""
        self.initialised.fill_(False)
        self._collected.clear()

    @torch.no_grad()
    def _collect(self, rows: Tensor) -> None:
        """Keep latents (n, d) until there are enough, then fill the codebook by k-means."""
        self._collected.append(rows)
        processes = dist.get_world_size() if _distributed() else 1
        if processes * sum(map(len, self._collected)) < SAMPLES_PER_CODE * len(self.codebook):
            return
        vectors = torch.cat(self._collected)
        if _distributed():
            gathered = [torch.empty_like(vectors) for _ in range(processes)]
            dist.all_gather(gathered, vectors)
            vectors = torch.cat(gathered)
        centres = kmeans(vectors, len(self.codebook), spherical=self.l2_normalized)
        self._place(torch.arange(len(self.codebook), device=rows.device), centres)
        self.initialised.fill_(True)
        self._collected.clear()

    @torch.no_grad()
    def _update_codes(self, rows: Tensor, codes: Tensor) -> None:
        """Count the use of codes (n,) by latents (n, d), move the running means, and revive unused codes."""
        size = len(self.codebook)
        counts = torch.bincount(codes, minlength=size).to(rows.dtype)
        if _distributed():
            dist.all_reduce(counts)
        scale = size / counts.sum()  # counts times this are shares, of which 1 is the fair one
        self.share.lerp_((counts * scale).to(self.share.dtype), 1 - USAGE_DECAY)
        if self.update == "ema":
            sums = torch.zeros_like(self.codebook).index_add_(0, codes, rows.to(self.codebook.dtype))
            if _distributed():
                dist.all_reduce(sums)
            self.sums.lerp_(sums * scale, 1 - USAGE_DECAY)
            self.codebook.copy_(self.sums / self.share.clamp(min=DEAD_USAGE / 2)[:, None])
        dead = ((self.share < DEAD_USAGE) & (counts == 0)).nonzero().flatten()
        if len(dead):
            self._place(dead, rows[draw_indices(len(rows), len(dead))])

    def _place(self, codes: Tensor, vectors: Tensor) -> None:
        """Set `codes` (n,) to `vectors` (n, d), with a fair share of use; the first process decides for all."""
        vectors = vectors.to(self.codebook.dtype).contiguous()
        if _distributed():
            dist.broadcast(vectors, src=0)
        self.codebook[codes] = vectors
        self.share[codes] = 1.0
        if self.update == "ema":
            self.sums[codes] = vectors

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._collected:  # so that a run stopped while it collects resumes exactly
            destination[prefix + "collected"] = torch.cat(self._collected)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        collected = state_dict.pop(prefix + "collected", None)
        self._collected = [] if collected is None else [collected.to(self.codebook.device)]
        super()._load_from_state_dict(state_dict, prefix, *args)
