"""Pictures in; all that a CLIP sees of them, small enough to wait in memory, and their embeddings, out."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.preprocess import pixels_for
from codebrush.models.clip import CLIP

BATCH = 32  # pictures that the CLIP is shown at once


def fitted(clip: CLIP, image: Image.Image) -> Tensor:
    """A picture, decoded with its mode kept, as the CLIP is shown it: (3, S, S) uint8, of which nothing is lost."""
    return pixels_for(clip, [image])[0].mul(255).round().to(torch.uint8)


@torch.inference_mode()
def embed(clip: CLIP, pictures: Sequence[Tensor]) -> Tensor:
    """Pictures as `fitted` -> unit vectors (B, E) float32 on the CPU."""
    device, parts = clip.log_scale.device, [torch.zeros(0, clip.embed_dim)]
    for start in range(0, len(pictures), BATCH):
        pixels = torch.stack(list(pictures[start : start + BATCH])).to(device)  # (B, 3, S, S)
        parts.append(clip.encode_image(pixels.float().div_(255)).float().cpu())
    return torch.cat(parts)
