"""Temperature scaling: probabilities that agree with how often labels are right (Guo et al. 2017)."""

import math

from torch import Tensor

COOLEST, WARMEST = 0.01, 100.0  # between which a temperature is fitted


def fit_temperature(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> float:
    """The temperature, 0.01 to 100, to divide logits by for the least negative log-likelihood of the right labels.

    Args:
        logits: (N, L), of L labels for each of N pictures.
        targets: (N,) int64, the number of the right label.
        smoothing: label smoothing, 0 to 1: the share of each target that is spread over all labels (as by Platt 1999,
            section 2.2). Without it, pictures that are all classified correctly would ask for a temperature of 0.
    """
    logits = logits.double()
    own = (1 - smoothing) * logits.gather(1, targets[:, None])[:, 0] + smoothing * logits.mean(-1)
    low, high = math.log(1 / WARMEST), math.log(1 / COOLEST)
    for _ in range(60):  # the loss is convex in 1 / temperature: its slope changes sign once
        middle = (low + high) / 2
        slope = ((logits * math.exp(middle)).softmax(-1) * logits).sum(-1) - own
        low, high = (middle, high) if slope.mean() < 0 else (low, middle)
    return math.exp(-(low + high) / 2)
