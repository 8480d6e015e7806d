"""The loss of a code transformer, with soft targets for codes that look alike."""

import torch
import torch.nn.functional as F
from torch import Tensor


def code_loss(logits: Tensor, codes: Tensor, label_smoothing: float = 0.0, likeness: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, in nats a code, of logits (..., K) with codes (...) int64. `likeness` (K, K) holds a target
    distribution over all codes for each code (see `code_likeness`)."""
    targets = codes.flatten() if likeness is None else likeness[codes.flatten()]
    return F.cross_entropy(logits.float().flatten(0, -2), targets, label_smoothing=label_smoothing)


def code_likeness(codebook: Tensor, temperature: float) -> Tensor:
    """How well each code of a codebook (K, d) can stand in for each other one: (K, K), rows that sum to 1.

    Soft targets as in RQ-Transformer (Lee et al. 2022, section 3.2.3): a softmax over negative squared distances, which
    are divided by their mean so that `temperature` means the same for every codebook.
    """
    apart = torch.cdist(codebook.float(), codebook.float()).square()
    return (-apart / (temperature * apart.mean())).softmax(1)
