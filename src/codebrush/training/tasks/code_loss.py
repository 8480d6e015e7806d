"""The loss of a code transformer, with soft targets for codes that look alike."""

import torch
import torch.nn.functional as F
from torch import Tensor


def code_loss(logits: Tensor, codes: Tensor, label_smoothing: float = 0.0, likeness: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats a code: logits (..., K), codes (...) int64; `likeness` (K, K) has a distribution over
    all codes for each one that is asked for (see `code_likeness`)."""
    targets = codes.flatten() if likeness is None else likeness[codes.flatten()]
    return F.cross_entropy(logits.float().flatten(0, -2), targets, label_smoothing=label_smoothing)


def code_likeness(codebook: Tensor, temperature: float) -> Tensor:
    """How well each code of a codebook (K, d), as it is looked up, stands for each other one: (K, K), rows of sum 1.

    Soft targets, as in RQ-Transformer (Lee et al. 2022, section 3.2.3): codes of nearly the same look are nearly the
    same answer. Squared distances count as shares of the mean one, so that `temperature` means the same everywhere.
    """
    apart = torch.cdist(codebook.float(), codebook.float()).square()
    return (-apart / (temperature * apart.mean())).softmax(1)
