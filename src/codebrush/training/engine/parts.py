"""A batch in parts that are run one after the other, and means over tokens that stay those of the whole batch."""

from collections.abc import Mapping

import torch
from torch import Tensor


def cut(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Every `parts`-th row of a batch, from the first row on, from the second on, and so on. Tensors that hold only the
    batch's first rows hold only a part's first rows, too."""
    if parts == 1:
        return [dict(batch)]
    return [{name: rows[part::parts].contiguous() for name, rows in batch.items()} for part in range(parts)]


def totals(rows: int, *counts: int) -> Tensor:
    """How many rows a batch has, and how many there are in it of what each of its means is over: (rows, 1 + n) int64,
    the same in each row, so that each part knows it."""
    return torch.tensor([rows, *counts]).expand(rows, -1)


def mean_weights(whole: Tensor, *counts: Tensor) -> Tensor:
    """What to multiply the means over a part by, so that their average over the parts is the mean over the whole batch:
    (n,).

    `whole` are the `totals` of the batch that this is a part of, each of `counts` () how many there are in this part.
    The weights are exactly 1 where the part is the whole batch.
    """
    rows, them = whole[0, 0], whole[0, 1:]
    return torch.stack(counts) * rows / (them.clamp(min=1) * len(whole))
