"""What training from a start adds: the rows of a replayed set, and blends of the start with the result."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from codebrush.errors import PackError, TrainingError, UsageError
from codebrush.training.dataset import Joined
from codebrush.training.engine.loop import rows_of_step

REPLAY_STREAM = 1 << 21  # shuffles apart from the new set's, also where the two are equally long


def replayed_rows(share: float, batch_size: int) -> int:
    """How many rows of a batch come from the replayed set. Raises TrainingError where one of the two gets none."""
    count = round(share * batch_size)
    if not 0 < count < batch_size:
        raise TrainingError(
            f"recipe.replay_share {share} of loop.batch_size {batch_size} leaves no row for "
            f"{'the replay set' if not count else 'the new pictures'}: choose another share"
        )
    return count


def joined_rows(data: Joined, count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which rows of `data` step `step` sees, (B,) int64: `count` of the replayed set after those of the new one.

    Each set goes through shuffled epochs of its own; the rows follow from (seed, step) alone.
    """
    new = rows_of_step(len(data.new), batch_size - count, seed, step)
    replay = rows_of_step(len(data.replay), count, seed, step, REPLAY_STREAM)
    return np.concatenate([new, replay + len(data.new)])


def blend(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) a + alpha b, tensor by tensor: WiSE-FT (Wortsman et al. 2022, section 3).

    0 gives `a` and 1 gives `b`, bit for bit; between them whole numbers come from `b`. Raises UsageError for an
    alpha outside [0, 1], and PackError where the two have other names or shapes, which names the first.
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
