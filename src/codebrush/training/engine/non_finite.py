"""Steps whose loss is infinite or NaN: the error that ends a run, and how a step is undone when it is left out."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codebrush.errors import TrainingError
from codebrush.training.engine.sharding import here

MOST_IN_A_ROW = 20  # steps left out, after which it is the weights that are broken


class LossDiverged(TrainingError):
    """The loss of a run became infinite or NaN at step `at`.

    The message is for a run by a recipe: it names what is trained, and the last good checkpoint, at `path` and of step
    `good` (0: there is none). `hint` says what to do.
    """

    def __init__(self, name: str, at: int, path: Path, good: int, hint: str):
        last = f"the last good checkpoint is of step {good} ({path})" if good else "there is no checkpoint yet"
        super().__init__(f"{name}: the loss became infinite or NaN at step {at}; {last}: {hint}")
        self.at = at


STOPPED = "go on with --resume --on-nan skip, which leaves such steps out, or train again with a lower learning rate"
HOPELESS = f"so were the {MOST_IN_A_ROW - 1} steps before, which were left out: train again with a lower learning rate"


class Undo:
    """Networks and optimizers as they are now, to be put back exactly."""

    def __init__(self, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Any]):
        self.networks, self.optimizers = networks, optimizers
        self._weights = {name: _copied(network.state_dict()) for name, network in networks.items()}
        self._moments = {name: copy.deepcopy(optimizer.state_dict()) for name, optimizer in optimizers.items()}

    def __call__(self) -> None:
        """Put them back."""
        for name, network in self.networks.items():
            network.load_state_dict(self._weights[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(self._moments[name])


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def all_finite(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Whether no value of the tensors is infinite or NaN."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)


def gradients(network: nn.Module) -> list[torch.Tensor | None]:
    """The gradients of a network's weights, as far as this process holds them."""
    return [None if weight.grad is None else here(weight.grad) for weight in network.parameters()]


def hopeless(steps: Sequence[int]) -> bool:
    """Whether the last of the `steps` left out, in rising order, lie in one row of MOST_IN_A_ROW."""
    last = steps[-MOST_IN_A_ROW:]
    return len(last) == MOST_IN_A_ROW and last[-1] - last[0] == MOST_IN_A_ROW - 1
