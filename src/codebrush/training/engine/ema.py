"""An exponential moving average of a network's weights, which works better than the weights of the last step."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from codebrush.training.engine.sharding import fill, here


class EMA:
    """Exponential moving average of the trained parameters; all other state is copied unchanged."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.values = {
            name: parameter.detach().clone()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }

    def to(self, device: torch.device) -> None:
        """Keep the average on `device`."""
        self.values = {name: value.to(device) for name, value in self.values.items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the weights after step `step`; early on by more, so that the start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(network.named_parameters())
        ours = [here(value) for value in self.values.values()]
        torch._foreach_lerp_(ours, [here(parameters[name].detach()) for name in self.values], 1 - decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint's average."""
        for name, value in values.items():
            fill(self.values[name], value)

    def network(self, network: nn.Module) -> nn.Module:
        """A copy of `network` with the averaged weights."""
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(dict(self.values), strict=False)
        return averaged
