"""AdamW, with its parameter groups and layer-wise learning-rate decay."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

TOWERS = ("image_encoder", "text_encoder")
BEFORE_THE_TRUNK = frozenset(
    (
        "patch_embedding",
        "class_embedding",
        "position_embedding",
        "input_norm",
        "token_embedding",
        "token_projection",
        "stem",
    )
)


def make_adamw(
    networks: Iterable[nn.Module],
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.98),
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over all parameters that require gradients; only matrices and kernels decay.

    Embedding tables, gains, biases and scalars have no weight decay. A `layer_decay` below 1 multiplies the learning
    rate of each layer of a CLIP's towers by that factor for every layer between it and the output (Clark et al. 2020,
    ELECTRA; Bao et al. 2022, BEiT), so that general features stay while the top adapts.
    """
    found: defaultdict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)  # by distance, and whether they decay
    for network in networks:
        for place, module in network.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    matrix = name == "weight" and parameter.ndim >= 2 and not isinstance(module, nn.Embedding)
                    distance = layer_distance(network, f"{place}.{name}") if layer_decay < 1 else 0
                    found[distance, matrix].append(parameter)
    groups = [
        {
            "params": found[distance, matrix],
            "lr": learning_rate * layer_decay**distance,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        # The furthest from the output first; at each distance those with weight decay first.
        for distance, matrix in sorted(found, reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)


def layer_distance(network: nn.Module, name: str) -> int:
    """The number of layers between the parameter `name` of a CLIP and the output of its tower.

    Embeddings and the stem count as the first layer, then each block of a transformer or stage of a ResNet, and what
    follows those (norm, pooling, projection) as the last. Parameters outside the towers, and those of an encoder
    without known layers, are at distance 0.
    """
    tower, *parts = name.split(".")
    if tower not in TOWERS:
        return 0
    encoder = getattr(network, tower)
    trunk = encoder.transformer.blocks if hasattr(encoder, "transformer") else getattr(encoder, "stages", ())
    if parts[0] in BEFORE_THE_TRUNK:
        return len(trunk) + 1
    if parts[:2] == ["transformer", "blocks"]:
        return len(trunk) - int(parts[2])
    if parts[0] == "stages":
        return len(trunk) - int(parts[1])
    return 0
