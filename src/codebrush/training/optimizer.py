"""Networks -> AdamW with its parameter groups, and the learning-rate schedule as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def make_adamw(
    networks: Iterable[nn.Module],
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over what asks for gradients; only matrices and kernels decay.

    Tables of embeddings, gains, biases and single numbers are not pulled towards zero.
    """
    decayed, kept = [], []
    for network in networks:
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    matrix = name == "weight" and parameter.ndim >= 2 and not isinstance(module, nn.Embedding)
                    (decayed if matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas)


def cosine_schedule(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Factor on the learning rate at `step` of `steps`: a linear rise, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
