"""Embeds pictures with a CLIP in batches; until then they wait in memory as 8-bit pixels at the CLIP's size."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.preprocess import pixels_for
from codebrush.models.clip import CLIP

BATCH = 32  # pictures encoded together


def clip_pixels(clip: CLIP, image: Image.Image) -> Tensor:
    """What the CLIP sees of a picture that was decoded with its mode kept: (3, H, W) uint8, without loss."""
    return pixels_for(clip, [image])[0].mul(255).round().to(torch.uint8)


@torch.inference_mode()
def embed(clip: CLIP, pictures: Sequence[Tensor]) -> Tensor:
    """Pictures as `clip_pixels` returns them -> unit vectors (B, E) float32 on the CPU."""
    device, parts = clip.log_scale.device, [torch.zeros(0, clip.embed_dim)]
    for start in range(0, len(pictures), BATCH):
        pixels = torch.stack(list(pictures[start : start + BATCH])).to(device)  # (B, 3, H, W)
        parts.append(clip.encode_image(pixels.float().div_(255)).float().cpu())
    return torch.cat(parts)
