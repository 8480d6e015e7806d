"""Logits and right labels in; the temperature that makes their probabilities true (Guo et al. 2017) out."""

import math

from torch import Tensor

COOLEST, WARMEST = 0.01, 100.0  # temperatures that a fit may find


def fit_temperature(logits: Tensor, targets: Tensor, doubt: float = 0.0) -> float:
    """The temperature from 0.01 to 100 by which to divide logits (N, L) for the least negative log-likelihood of
    the right labels' places (N,).

    `doubt` is the share of each picture's one vote that all labels get alike (Platt 1999, section 2.2): where every
    picture is told rightly, the likeliest temperature is none at all, and few pictures say too little for that.
    """
    logits = logits.double()
    own = (1 - doubt) * logits.gather(1, targets[:, None])[:, 0] + doubt * logits.mean(-1)
    low, high = math.log(1 / WARMEST), math.log(1 / COOLEST)
    for _ in range(60):  # the loss is convex in 1 / temperature: its slope changes sign once
        middle = (low + high) / 2
        slope = ((logits * math.exp(middle)).softmax(-1) * logits).sum(-1) - own
        low, high = (middle, high) if slope.mean() < 0 else (low, middle)
    return math.exp(-(low + high) / 2)
