"""The losses of a CLIP: softmax (InfoNCE) or sigmoid over the cosines of pictures and texts, also across processes."""

from dataclasses import dataclass

import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor

LEAST = -1e4  # the logit of a pair that is left out; minus infinity times a weight of 0 would be NaN


def gather(x: Tensor) -> Tensor:
    """The rows (B, ...) of every process as (world B, ...); gradients flow back to the process they came from."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    if not x.requires_grad:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    return torch.cat(torch.distributed.nn.functional.all_gather(x.contiguous()))


def positives(groups: Tensor) -> Tensor:
    """(B, B) float of group numbers (B,): 1 where two rows of the batch are of the same group."""
    return (groups[:, None] == groups[None, :]).float()


def scaled_cosines(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """`scale` times the cosine of every pair of unit vectors (B, E): (B, B) float32."""
    # Mixed precision would round cosines to three digits, and the scale multiplies them by up to a hundred.
    with torch.autocast(image.device.type, enabled=False):
        return scale * image.float() @ text.float().T


@dataclass(frozen=True)
class TextLikeness:
    """The meanings of texts as unit vectors: of those of the batch (B, d) and of those that are only negatives (M, d).

    Soft targets (SoftCLIP, Gao et al. 2023, section 3.3): a `share` of the target is spread over all texts by the
    similarity of their meanings, so that "envelope" is not pushed away from a picture of mail.
    """

    texts: Tensor
    others: Tensor
    share: float
    temperature: float

    def soften(self, target: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Targets (B, N) whose rows sum to 1, mixed with a softmax over the cosines of `rows` and `columns`."""
        near = (rows @ columns.T / self.temperature).softmax(1)
        return (1 - self.share) * target + self.share * near


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    groups: Tensor | None = None,
    others: tuple[Tensor, Tensor] | None = None,
    likeness: TextLikeness | None = None,
) -> Tensor:
    """Symmetric cross-entropy over scaled cosines (Radford et al. 2021, figure 3).

    `image` and `text` are unit vectors (B, E) whose i-th rows belong together. With `groups` (B,) int64 every pair of
    the same group is a positive, and the target is spread evenly over them. Negatives come from every process: each
    computes the loss of the whole batch, and gradients averaged over processes equal those of one process. `others`,
    texts (M, E) and their groups (M,), are additional negatives for the pictures; those of a picture's own group are
    left out, unless `likeness` gives texts of similar meaning a part of the target.
    """
    if groups is None:
        offset = torch.distributed.get_rank() * len(image) if torch.distributed.is_initialized() else 0
        groups = torch.arange(len(image), device=image.device) + offset
    image, text, groups = gather(image), gather(text), gather(groups)
    logits = scaled_cosines(image, text, scale)  # (B, B)
    target = to_texts = _even(positives(groups))
    if others is not None:
        own = (groups[:, None] == others[1][None, :]).float()  # (B, M)
        more = scaled_cosines(image, others[0], scale)
        if likeness is None:
            more, own = more.masked_fill(own.bool(), LEAST), torch.zeros_like(own)
        to_texts = _even(torch.cat([positives(groups), own], dim=1))
        logits_to_texts = torch.cat([logits, more], dim=1)
    else:
        logits_to_texts = logits
    if likeness is not None:
        meaning = gather(likeness.texts)
        target = likeness.soften(target, meaning, meaning)
        to_texts = likeness.soften(to_texts, meaning, torch.cat([meaning, likeness.others]))
    return (F.cross_entropy(logits_to_texts, to_texts) + F.cross_entropy(logits.T, target)) / 2


def _even(positive: Tensor) -> Tensor:
    """Rows of ones and zeros, scaled to sum to 1."""
    return positive / positive.sum(1, keepdim=True)


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, groups: Tensor | None = None) -> Tensor:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary classification of every pair of the batch."""
    if groups is None:
        offset = torch.distributed.get_rank() * len(image) if torch.distributed.is_initialized() else 0
        groups = torch.arange(len(image), device=image.device) + offset
    image, text, groups = gather(image), gather(text), gather(groups)
    logits = scaled_cosines(image, text, scale) + bias
    sign = 2 * positives(groups) - 1  # +1 for a pair that fits, -1 for one that does not
    return -F.logsigmoid(sign * logits).sum() / len(image)
