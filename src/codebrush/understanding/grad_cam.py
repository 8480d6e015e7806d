"""Class activation maps of a CLIP with a ResNet: how much each place of a picture adds to its cosine with a direction.

Grad-CAM (Selvaraju et al. 2017) uses the last stage alone, which is a grid of 2 x 2 for a picture of 64 pixels. Here
all stages are combined, with a weight for each place as in LayerCAM (Jiang et al. 2021): deep stages say what is in
the picture, shallow ones where.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.models.encoders.modified_resnet import ModifiedResNet
from codebrush.understanding.relevance import TINY


def class_activation_maps(clip: CLIP, images: Tensor, directions: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] and one direction (B, E) for each -> maps (B, h, w) at a quarter of H and W.

    A stage's map is the sum over its channels of relu(gradient) * activation; `combine_maps` joins those of all four
    stages. The image encoder must be a `ModifiedResNet`.
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
        return combine_maps(maps)


def combine_maps(maps: list[Tensor]) -> Tensor:
    """Maps (B, 1, h, w) of any sizes, values 0 or more -> the square root of their product (B, h, w), at the largest
    size.

    Each map is first divided by its largest value. A place is hot only if it is hot in every map.
    """
    size = max(part.shape[-2:] for part in maps)
    product = torch.ones((), device=maps[0].device)
    for part in maps:
        part = F.interpolate(part, size, mode="bilinear")
        product = product * part / part.amax((2, 3), keepdim=True).clamp(min=TINY)
    return product[:, 0].sqrt()
