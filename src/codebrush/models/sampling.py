"""Draws tokens from logits: pure functions that every sampler uses, for codes and for text."""

import torch
from torch import Tensor

NUCLEUS = 256  # tokens that are looked at first for nucleus sampling
ROUNDING = 1e-3  # far more than the sum of a row can be off


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Probabilities (..., K) float32 of logits (..., K), after temperature and filters.

    The filters apply in the order `min_p`, `top_k`, `top_p`; each keeps the likeliest token at least.

    Args:
        logits: (..., K).
        temperature: what logits are divided by; 0 gives all probability to the likeliest token.
        top_k: keep the `top_k` likeliest tokens; 0 keeps all.
        top_p: nucleus sampling: keep the smallest set of tokens whose probability adds up to `top_p`, 0 to 1 (Holtzman
            et al. 2020).
        min_p: keep tokens with at least `min_p` times the probability of the likeliest one, 0 to 1.
    """
    logits = logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits - logits.amax(-1, keepdim=True)  # at most 0, so that a tiny temperature cannot reach +inf
    p = torch.softmax(logits / max(temperature, torch.finfo(torch.float32).tiny), dim=-1)
    if min_p > 0:
        p = p.masked_fill(p < min_p * p.amax(-1, keepdim=True), 0.0)
    if 0 < top_k < p.shape[-1]:
        kept = p.topk(top_k, dim=-1)
        p = torch.zeros_like(p).scatter_(-1, kept.indices, kept.values)
    if top_p < 1:
        p = p / p.sum(-1, keepdim=True)
        ordered, order = _likeliest(p, top_p)
        before = ordered.cumsum(-1) - ordered  # the probability of all likelier tokens
        ordered = ordered.masked_fill((before >= top_p) & (before > 0), 0.0)
        p = torch.zeros_like(p).scatter_(-1, order, ordered)
    return p / p.sum(-1, keepdim=True)


def _likeliest(p: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of `p` (..., K), in falling order, and which they are, (..., n) each: all of them, or the
    first NUCLEUS if these have more than `mass` in every row, as sorting thousands of codes takes most of a draw."""
    if p.shape[-1] > 4 * NUCLEUS:
        first = p.topk(NUCLEUS, dim=-1)
        if bool((first.values.sum(-1) > mass + ROUNDING).all()):
            return first.values, first.indices
    return p.sort(dim=-1, descending=True)


def sample(
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """Draw one token a row: logits (B, K) and random numbers `uniform` (B,) in [0, 1) -> tokens (B,) int64.

    The caller supplies the random numbers, so that what a row draws does not depend on the rest of its batch. The other
    arguments are those of `probabilities`.
    """
    p = probabilities(logits, temperature, top_k, top_p, min_p).double()
    mass = p.cumsum(-1)  # (B, K)
    target = uniform.double().unsqueeze(-1).to(mass.device) * mass[..., -1:]
    token = torch.searchsorted(mass, target, right=True).squeeze(-1)
    last = p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(-1)  # rounding must not go past the last token that is kept
    return torch.minimum(token, last)
