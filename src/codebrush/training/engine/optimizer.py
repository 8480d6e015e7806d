"""AdamW, with its parameter groups and a learning rate for each of them."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn


def make_adamw(
    networks: Iterable[nn.Module],
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.98),
    rate_factor: Callable[[nn.Module, str], float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over all parameters that require gradients; only matrices and kernels decay.

    Embedding tables, gains, biases and scalars have no weight decay. `rate_factor` gives the factor on the learning
    rate of a parameter, from its network and its name there.
    """
    found: defaultdict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)  # by factor, and whether they decay
    for network in networks:
        for place, module in network.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    matrix = name == "weight" and parameter.ndim >= 2 and not isinstance(module, nn.Embedding)
                    factor = 1.0 if rate_factor is None else rate_factor(network, f"{place}.{name}")
                    found[factor, matrix].append(parameter)
    groups = [
        {
            "params": found[factor, matrix],
            "lr": learning_rate * factor,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        # Checkpoints rely on this order: rising learning rates, and at each those with weight decay first.
        for factor, matrix in sorted(found, key=lambda group: (group[0], not group[1]))
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)  # one kernel a tensor, on CPUs too
