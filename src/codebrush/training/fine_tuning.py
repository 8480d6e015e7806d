"""What fine-tuning adds: rows of a set that is replayed beside the new one, and blends of the start with the result."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from codebrush.errors import PackError, TrainingError, UsageError
from codebrush.training.dataset import Joined
from codebrush.training.engine.rows import ShuffledRows

REPLAY_STREAM = 1 << 21  # shuffles differently from the new set, even if both have the same length


def replayed_rows(share: float, batch_size: int) -> int:
    """How many rows of a batch come from the replayed set. Raises TrainingError if either set gets none."""
    count = round(share * batch_size)
    if not 0 < count < batch_size:
        raise TrainingError(
            f"recipe.replay_share {share} of loop.batch_size {batch_size} leaves no row for "
            f"{'the replay set' if not count else 'the new pictures'}: choose another share"
        )
    return count


class ReplayedRows:
    """The rows of each step of a run on two sets, each shuffled by itself.

    `count` rows of a batch are from the replayed set.
    """

    def __init__(self, data: Joined, count: int, batch_size: int, seed: int):
        self.first = len(data.new)
        self.new = ShuffledRows(len(data.new), batch_size - count, seed)
        self.replay = ShuffledRows(len(data.replay), count, seed, REPLAY_STREAM)

    def of_step(self, step: int) -> np.ndarray:
        """The rows of the joined data that step `step` sees, (B,) int64: the replayed ones after the new ones."""
        return np.concatenate([self.new.of_step(step), self.replay.of_step(step) + self.first])


def blend(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) a + alpha b, tensor by tensor: WiSE-FT (Wortsman et al. 2022, section 3).

    0 gives `a` and 1 gives `b`, bit for bit; between them integer tensors are those of `b`.

    Raises:
        UsageError: if alpha is outside [0, 1].
        PackError: if the two have different names or shapes; it names the first.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}: it must be between 0 (the first) and 1 (the second)")
    for name in [*a, *b]:
        shapes = [tuple(state[name].shape) if name in state else "missing" for state in (a, b)]
        if shapes[0] != shapes[1]:
            raise PackError(f"the two do not fit together: '{name}' is {shapes[0]} in one and {shapes[1]} in the other")
    if alpha in (0, 1):
        return {name: (b if alpha else a)[name].clone() for name in a}
    return {name: _mix(tensor, b[name], alpha) for name, tensor in a.items()}


def _mix(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if not a.is_floating_point():
        return b.clone()
    return ((1 - alpha) * a.to(torch.float64) + alpha * b.to(torch.float64)).to(b.dtype)
