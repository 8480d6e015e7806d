"""The losses of a CLIP: softmax (InfoNCE) or sigmoid over the cosines of pictures and texts, also across processes.

Each process computes the part of its own rows, against the rows of all. The mean of the parts is the loss of the whole
batch, and gradients averaged over processes are those of one process with all rows.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from codebrush.errors import TrainingError

LEAST = -1e4  # the logit of a pair that is left out; minus infinity times a weight of 0 would be NaN


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """The rows (B, ...) of every process as (world B, ...); gradients flow back to the process they came from."""
    return x if _processes() == 1 else _Gather.apply(x)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(_processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(_processes())[dist.get_rank()]


def row_numbers(x: Tensor) -> Tensor:
    """Where the rows of this process's `x` (B, ...) are among those that `gather` gives: (B,) int64."""
    first = dist.get_rank() * len(x) if _processes() > 1 else 0
    return torch.arange(len(x), device=x.device) + first


def own_share(count: int, field: str) -> int:
    """How many of `count` rows for all processes are for this one. Raises TrainingError, naming the recipe's `field`,
    if there are fewer than processes."""
    processes = _processes()
    if count < processes:
        raise TrainingError(
            f"recipe.{field} is {count}, but there are {processes} processes: raise it, or lower loop.devices"
        )
    return len(range(dist.get_rank() if processes > 1 else 0, count, processes))


def pass_on(x: Tensor) -> Tensor:
    """The `x` of the process before this one, the last before the first; gradients flow back to it."""
    return _PassOn.apply(x)  # pyright: ignore[reportReturnType]


class _PassOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _exchange(x, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _exchange(gradients[0], -1)


def _exchange(x: Tensor, by: int) -> Tensor:
    """Send `x` to the process `by` places on, and return what comes from the one as far behind."""
    rank, count, received = dist.get_rank(), _processes(), torch.empty_like(x, memory_format=torch.contiguous_format)
    both = [
        dist.P2POp(dist.isend, x.contiguous(), (rank + by) % count),
        dist.P2POp(dist.irecv, received, (rank - by) % count),
    ]
    for each in dist.batch_isend_irecv(both):
        each.wait()
    return received


def positives(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, N) float of group numbers (B,) and (N,): 1 where they are the same."""
    return (rows[:, None] == columns[None, :]).float()


def scaled_cosines(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """`scale` times the cosine of every pair of unit vectors (B, E) and (N, E): (B, N) float32."""
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
    the same group is a positive, and the target is spread evenly over them. `others`, texts (M, E) and their groups
    (M,), are additional negatives for the pictures; those of a picture's own group are left out, unless `likeness`
    gives texts of similar meaning a part of the target.

    Negatives come from every process, and of the matrices each holds the rows of its own pictures and texts only.
    """
    groups = row_numbers(image) if groups is None else groups
    images, texts, all_groups = gather(image), gather(text), gather(groups)  # (N, ...) of all processes
    logits_to_texts = scaled_cosines(image, texts, scale)  # (B, N)
    logits_to_images = logits_to_texts.T if images is image else scaled_cosines(text, images, scale)
    same = positives(groups, all_groups)
    target = to_texts = _even(same)
    if others is not None:
        own = positives(groups, others[1])  # (B, M)
        more = scaled_cosines(image, others[0], scale)
        if likeness is None:
            more, own = more.masked_fill(own.bool(), LEAST), torch.zeros_like(own)
        to_texts = _even(torch.cat([same, own], dim=1))
        logits_to_texts = torch.cat([logits_to_texts, more], dim=1)
    if likeness is not None:
        meanings = gather(likeness.texts)
        target = likeness.soften(target, likeness.texts, meanings)
        to_texts = likeness.soften(to_texts, likeness.texts, torch.cat([meanings, likeness.others]))
    return (F.cross_entropy(logits_to_texts, to_texts) + F.cross_entropy(logits_to_images, target)) / 2


def _even(positive: Tensor) -> Tensor:
    """Rows of ones and zeros, scaled to sum to 1."""
    return positive / positive.sum(1, keepdim=True)


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, groups: Tensor | None = None) -> Tensor:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary classification of every pair of the batch.

    Several processes pass their texts on in a ring (section 3.3 there), so that each holds the logits of its pictures
    and of one process's texts at a time; for the gradients they are computed again.
    """
    groups = row_numbers(image) if groups is None else groups
    several, theirs = _processes() > 1, groups
    add_up = partial(checkpoint, _pair_losses, use_reentrant=False) if several else _pair_losses
    total = add_up(image, text, scale, bias, groups, theirs)
    for _ in range(1, _processes()):
        text, theirs = pass_on(text), pass_on(theirs)
        total = total + add_up(image, text, scale, bias, groups, theirs)
    return total / len(image)


def _pair_losses(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The sum of the losses of all pairs of pictures and texts, whose groups are `rows` and `columns`."""
    logits = scaled_cosines(image, text, scale) + bias
    sign = 2 * positives(rows, columns) - 1  # +1 for a pair that fits, -1 for one that does not
    return -F.logsigmoid(sign * logits).sum()
