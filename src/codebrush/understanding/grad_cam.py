"""A picture and directions in CLIP's space in; the share of each place in the cosine out, for ResNets.

Grad-CAM (Selvaraju et al. 2017) reads the last stage, of which a picture of 64 pixels leaves a grid of 2 x 2. So all
stages are read, each place by itself as in LayerCAM (Jiang et al. 2021): deep ones know what, shallow ones where.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.models.image_encoder import ModifiedResNet
from codebrush.understanding.relevance import TINY


def class_activation(clip: CLIP, images: Tensor, directions: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] and one direction (B, E) for each -> maps (B, h, w) at a quarter of H and W.

    A stage's map is sum over channels of relu(gradient) * activation; the answer is the root of all four's product.
    The image tower is a `ModifiedResNet`.
    """
    tower: ModifiedResNet = clip.image_encoder
    stages: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *call: stages.append(call[2])) for stage in tower.stages]
    try:
        with torch.enable_grad():
            embeddings = clip.encode_image(images.detach().requires_grad_())
            gradients = torch.autograd.grad((embeddings * directions).sum(), stages)  # rows do not mix
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        maps = [(grad.relu() * stage).sum(1, keepdim=True) for grad, stage in zip(gradients, stages, strict=True)]
        return joined(maps)


def joined(maps: list[Tensor]) -> Tensor:
    """Maps (B, 1, h, w) of any sizes, 0 or more -> the root of their product (B, h, w), at the largest size.

    Each counts as parts 0 to 1 of its largest value, so that a place is hot where all maps are.
    """
    size = max(part.shape[-2:] for part in maps)
    product = torch.ones((), device=maps[0].device)
    for part in maps:
        part = F.interpolate(part, size, mode="bilinear")
        product = product * part / part.amax((2, 3), keepdim=True).clamp(min=TINY)
    return product[:, 0].sqrt()
