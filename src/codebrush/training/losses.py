"""Embeddings and logits -> the scalar that training lowers."""

import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor

LEAST = -1e4  # a logit that takes no part; infinity times no weight would be no number


def gather(x: Tensor) -> Tensor:
    """Rows of every process, (B, ...) -> (world B, ...), with gradients flowing back to the process they came from."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    if not x.requires_grad:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    return torch.cat(torch.distributed.nn.functional.all_gather(x.contiguous()))


def positives(groups: Tensor) -> Tensor:
    """Group numbers (B,) -> (B, B) float: 1 where two rows of the batch mean the same thing."""
    return (groups[:, None] == groups[None, :]).float()


def scaled_cosines(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """`scale` times the cosine of every pair of unit vectors, (B, E) each -> (B, B) float32."""
    # Mixed precision would round cosines to three digits, and the scale makes up to a hundredfold of them.
    with torch.autocast(image.device.type, enabled=False):
        return scale * image.float() @ text.float().T


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    groups: Tensor | None = None,
    others: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Symmetric cross-entropy over scaled cosines (Radford et al. 2021, figure 3).

    `image` and `text` are unit vectors (B, E) whose i-th rows belong together; `groups` (B,) int64 makes every
    pair of the same group a positive, the target spread evenly over them. Negatives come from every process:
    each computes the loss of the whole batch, and gradients averaged over processes equal those of one process.
    `others`, texts (M, E) and their groups (M,), are more negatives for the pictures; those of a
    picture's own group do not count.
    """
    if groups is None:
        offset = torch.distributed.get_rank() * len(image) if torch.distributed.is_initialized() else 0
        groups = torch.arange(len(image), device=image.device) + offset
    image, text, groups = gather(image), gather(text), gather(groups)
    logits = scaled_cosines(image, text, scale)  # (B, B)
    target = positives(groups)
    target = target / target.sum(1, keepdim=True)
    to_images = F.cross_entropy(logits.T, target)
    if others is not None:
        own = groups[:, None] == others[1][None, :]  # (B, M)
        logits = torch.cat([logits, scaled_cosines(image, others[0], scale).masked_fill(own, LEAST)], dim=1)
        target = F.pad(target, (0, own.shape[1]))
    return (F.cross_entropy(logits, target) + to_images) / 2


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, groups: Tensor | None = None) -> Tensor:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): every pair of the batch is a yes-or-no question."""
    if groups is None:
        offset = torch.distributed.get_rank() * len(image) if torch.distributed.is_initialized() else 0
        groups = torch.arange(len(image), device=image.device) + offset
    image, text, groups = gather(image), gather(text), gather(groups)
    logits = scaled_cosines(image, text, scale) + bias
    sign = 2 * positives(groups) - 1  # +1 for a pair that fits, -1 for one that does not
    return -F.logsigmoid(sign * logits).sum() / len(image)


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
