"""Layer-wise learning-rate decay of a CLIP: layers far from the output learn more slowly, so that they change less."""

from collections.abc import Callable

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


def layer_decay(decay: float) -> Callable[[nn.Module, str], float]:
    """The factor on the learning rate of each parameter of a CLIP, for `make_adamw`.

    It is `decay` to the power of the number of layers between the parameter and the output of its tower (Clark et al.
    2020, ELECTRA; Bao et al. 2022, BEiT): general features stay while the top adapts. 1 leaves all rates equal.
    """
    return lambda network, name: decay ** layer_distance(network, name)


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
