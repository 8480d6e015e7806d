"""Quantisers: a latent (B, d, h, w) in; a quantised latent of the same shape, codes (B, h, w) and a loss out.

`VectorQuantizer` picks the nearest row of a codebook (VQ-VAE, van den Oord et al. 2017), `GumbelQuantizer` the row with
the largest logit (DALL-E, Ramesh et al. 2021). In eval mode both are deterministic and change nothing.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

CodebookUpdate = Literal["gradient", "ema"]

SAMPLES_PER_CODE = 8  # latents collected for k-means, a code
LLOYD_ITERATIONS = 10
USAGE_DECAY = 0.97
DEAD_USAGE = 0.02  # of a fair share; a code falls below it after some 130 batches without use
SCORE_ELEMENTS = 2**24  # of the similarity matrix held at once: 64 MB


class Quantized(NamedTuple):
    """What a quantiser makes of a latent."""

    quantised: Tensor  # (B, d, h, w); its gradient is handed straight through to the latent
    codes: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar, to be added to the training loss with weight 1
    distance: Tensor  # scalar without gradient: mean squared distance of latent and code, for the log


def usage(codes: Tensor, codebook_size: int) -> float:
    """The fraction of the codebook that occurs in `codes` (any shape, int64)."""
    return codes.unique().numel() / codebook_size


def perplexity(codes: Tensor, codebook_size: int) -> float:
    """exp(entropy) of how often each code occurs in `codes`: 1 if there is one, codebook_size if all are equal."""
    share = torch.bincount(codes.flatten(), minlength=codebook_size).double() / codes.numel()
    return float(torch.special.entr(share).sum().exp())


class _StraightThrough(torch.autograd.Function):
    """Gives `quantised` itself, not latent + (quantised - latent), whose rounding would differ from a look-up."""

    @staticmethod
    def forward(ctx: Any, quantised: Tensor, latent: Tensor) -> Tensor:
        ctx.dtype = latent.dtype
        return quantised.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype)


def straight_through(quantised: Tensor, latent: Tensor) -> Tensor:
    """The values of `quantised`, whose gradient goes to `latent` unchanged (Bengio et al. 2013)."""
    return _StraightThrough.apply(quantised.detach(), latent)  # pyright: ignore[reportReturnType]


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """For each of `vectors` (N, d) the row of `codebook` (K, d) at the least Euclidean distance: (N,) int64."""
    # |v - c|^2 = |v|^2 - 2 (v.c - |c|^2 / 2), and |v|^2 is the same for all c.
    offset = codebook.square().sum(1) / -2  # (K,)
    rows = max(1, SCORE_ELEMENTS // len(codebook))
    return torch.cat([torch.addmm(offset, part, codebook.T).argmax(1) for part in vectors.split(rows)])


def kmeans(vectors: Tensor, clusters: int, iterations: int = LLOYD_ITERATIONS, spherical: bool = False) -> Tensor:
    """Lloyd's algorithm on `vectors` (N, d): (clusters, d) centres, unit vectors if `spherical`.

    Random numbers come from torch's global CPU generator. A cluster that loses all its vectors starts anew at the
    vectors that lie farthest from their centres.
    """
    if spherical:
        vectors = F.normalize(vectors, dim=1)
    centres = vectors[_draw(len(vectors), clusters)].clone()
    for _ in range(iterations):
        nearest = nearest_codes(vectors, centres)
        counts = torch.bincount(nearest, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        empty = (counts == 0).nonzero().flatten()
        farthest = (vectors - centres[nearest]).square().sum(1).topk(min(len(empty), len(vectors))).indices
        centres = sums / counts.clamp(min=1)[:, None]
        centres[empty[: len(farthest)]] = vectors[farthest]
        if spherical:
            centres = F.normalize(centres, dim=1)
    return centres


def _draw(population: int, count: int) -> Tensor:
    """`count` indices below `population`, each as rarely repeated as can be."""
    rounds = -(-count // population)
    return torch.cat([torch.randperm(population) for _ in range(rounds)])[:count]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rows(latent: Tensor) -> Tensor:
    return latent.movedim(1, -1).flatten(0, -2)  # (B, d, h, w) -> (B h w, d)


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class VectorQuantizer(nn.Module):
    """Nearest code of a codebook (K, d), by Euclidean distance or, `l2_normalized`, by angle (Yu et al. 2022).

    Training begins with some batches that pass through unquantised while their latents are collected; k-means over
    them then fills the codebook (buffer `initialised`). From then on codes that go unused for long are moved to random
    latents of the batch at hand. With several processes every one must hold a batch of the same shape; codebook and
    usage stay equal on all.

    The loss is |sg(z) - c|^2 + commitment |z - sg(c)|^2 (van den Oord et al. 2017, eq. 3), averaged over elements:
    `commitment` weighs the pull on the encoder. With `update="ema"` the codebook follows running means instead
    (appendix A.1 there) and the first term falls away.
    """

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
        """Training's pass: with `l2_normalized` the latent itself is normalised, and the gradient knows it."""
        latent = _full_precision(latent)
        if self.l2_normalized:
            latent = F.normalize(latent, dim=1)
        if self.training and not self.initialised:
            self._collect(_rows(latent.detach()))
            if not self.initialised:
                zero = self.codebook.sum() * 0  # keeps the codebook in the graph, which DDP insists on
                return Quantized(latent, self.nearest(latent), zero, zero.detach())
        codes = self.nearest(latent)  # (B, h, w)
        chosen = self.look_up(codes)  # (B, d, h, w)
        if self.training:
            self._follow(_rows(latent.detach()), codes.flatten())
        distance = F.mse_loss(latent, chosen.detach())
        loss = self.commitment * distance
        if self.update == "gradient":
            loss = loss + F.mse_loss(chosen, latent.detach())
        return Quantized(straight_through(chosen, latent), codes, loss, distance.detach())

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latent and codes; the quantised latent's gradient reaches `latent` exactly as it is."""
        codes = self.nearest(latent)
        return straight_through(self.look_up(codes).to(latent.dtype), latent), codes

    @torch.no_grad()
    def nearest(self, latent: Tensor) -> Tensor:
        """The codes (B, h, w) of a latent (B, d, h, w) of any length, in at least float32."""
        rows = _full_precision(_rows(latent))
        with torch.autocast(latent.device.type, enabled=False):
            return nearest_codes(rows, self.vectors.to(rows.dtype)).view(latent.shape[0], *latent.shape[2:])

    def look_up(self, codes: Tensor) -> Tensor:
        """codes (B, h, w) -> their vectors (B, d, h, w)."""
        # Normalised after the look-up: the graph then holds no tensor that the next batch's revival overwrites.
        chosen = F.embedding(codes, self.codebook)
        return (F.normalize(chosen, dim=-1) if self.l2_normalized else chosen).movedim(-1, 1)

    @property
    def vectors(self) -> Tensor:
        """The codebook (K, d) as it is looked up."""
        return F.normalize(self.codebook, dim=1) if self.l2_normalized else self.codebook

    @torch.no_grad()
    def _collect(self, rows: Tensor) -> None:
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
    def _follow(self, rows: Tensor, codes: Tensor) -> None:
        """Count the codes' use, move the running means, and revive the dead."""
        size = len(self.codebook)
        counts = torch.bincount(codes, minlength=size).to(rows.dtype)
        if _distributed():
            dist.all_reduce(counts)
        scale = size / counts.sum()  # counts times this are shares: 1 is fair
        self.share.lerp_((counts * scale).to(self.share.dtype), 1 - USAGE_DECAY)
        if self.update == "ema":
            sums = torch.zeros_like(self.codebook).index_add_(0, codes, rows.to(self.codebook.dtype))
            if _distributed():
                dist.all_reduce(sums)
            self.sums.lerp_(sums * scale, 1 - USAGE_DECAY)
            self.codebook.copy_(self.sums / self.share.clamp(min=DEAD_USAGE / 2)[:, None])
        dead = ((self.share < DEAD_USAGE) & (counts == 0)).nonzero().flatten()
        if len(dead):
            self._place(dead, rows[_draw(len(rows), len(dead))])

    def _place(self, codes: Tensor, vectors: Tensor) -> None:
        """Move `codes` (n,) to `vectors` (n, d), as fairly used as any; the first process decides for all."""
        vectors = vectors.to(self.codebook.dtype).contiguous()
        if _distributed():
            dist.broadcast(vectors, src=0)
        self.codebook[codes] = vectors
        self.share[codes] = 1.0
        if self.update == "ema":
            self.sums[codes] = vectors

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._collected:  # so that a run broken off while it collects goes on exactly
            destination[prefix + "collected"] = torch.cat(self._collected)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        collected = state_dict.pop(prefix + "collected", None)
        self._collected = [] if collected is None else [collected.to(self.codebook.device)]
        super()._load_from_state_dict(state_dict, prefix, *args)


class GumbelQuantizer(nn.Module):
    """A distribution over the codes at each position, sampled by Gumbel-softmax (Jang et al. 2017).

    In training the one-hot choice is a noisy arg-max whose gradient is that of the softmax at `temperature`, an
    attribute that a recipe may lower step by step; the loss is `kl_weight` times the divergence of the distribution
    from the uniform one. In eval mode the choice is the arg-max without noise.
    """

    def __init__(self, codebook_size: int, code_dim: int, *, kl_weight: float = 5e-4):
        super().__init__()
        self.kl_weight = kl_weight
        self.temperature = 1.0
        self.proj = nn.Conv2d(code_dim, codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim))

    @property
    def vectors(self) -> Tensor:
        """The codebook (K, d) as it is looked up."""
        return self.codebook

    def forward(self, latent: Tensor) -> Quantized:
        """Training's pass; see the class."""
        logits = _full_precision(self.proj(latent))  # (B, K, h, w)
        share = logits.softmax(1)
        divergence = (share * (share * len(self.codebook) + 1e-10).log()).sum(1).mean()
        quantised, codes = self._choose(logits)
        distance = F.mse_loss(latent.detach().float(), quantised.detach().float())
        return Quantized(quantised, codes, self.kl_weight * divergence, distance)

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latent and codes; the gradient reaches `latent` by way of the softmax."""
        quantised, codes = self._choose(_full_precision(self.proj(latent)))
        return quantised.to(latent.dtype), codes

    def nearest(self, latent: Tensor) -> Tensor:
        """The most likely codes (B, h, w) of a latent (B, d, h, w)."""
        return self.proj(latent).argmax(1)

    def look_up(self, codes: Tensor) -> Tensor:
        """codes (B, h, w) -> their vectors (B, d, h, w)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        noisy = logits
        if self.training:
            noisy = logits - torch.empty_like(logits).exponential_().log()  # -log of an exponential is Gumbel noise
        soft = (noisy / self.temperature).softmax(1)
        codes = soft.argmax(1)  # (B, h, w)
        hard = F.one_hot(codes, len(self.codebook)).movedim(-1, 1).to(soft.dtype)  # (B, K, h, w)
        with torch.autocast(logits.device.type, enabled=False):
            choice = straight_through(hard, soft).movedim(1, -1)  # (B, h, w, K)
            return (choice @ self.codebook.to(choice.dtype)).movedim(-1, 1), codes
