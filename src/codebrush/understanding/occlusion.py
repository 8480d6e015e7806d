"""A picture and directions in CLIP's space in; how far the cosine falls where the picture is covered, out.

The slow reference: it asks nothing of the encoder but its answers (Zeiler and Fergus 2014, section 4.2).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from codebrush.models.clip import CLIP

BATCH = 64  # pictures encoded together
WINDOWS = (4, 8)  # sides of the covering window, as parts of the picture's; small ones see detail, large ones wholes

Progress = Callable[[int, int], None]  # pictures encoded, in all


def occlusion(clip: CLIP, image: Tensor, directions: Tensor, progress: Progress | None = None) -> Tensor:
    """One image (3, H, W) in [0, 1] and directions (K, E) -> maps (K, H, W), 0 or more.

    Windows of a quarter and of an eighth of the picture, overlapping by half, show its mean colour instead: a blurred
    picture would still show the colour of what it hides. A pixel's value is the mean fall of the cosine over the
    windows that cover it.
    """
    height, width = image.shape[-2:]
    grey, covered = image.mean((1, 2), keepdim=True), _windows(height, width, image.device)  # (3, 1, 1), (M, H, W) bool
    whole = encode(clip, image.unsqueeze(0)) @ directions.T  # (1, K)
    falls = []
    for first in range(0, len(covered), BATCH):
        part = covered[first : first + BATCH].unsqueeze(1)  # (B, 1, H, W)
        falls.append(whole - encode(clip, torch.where(part, grey, image)) @ directions.T)
        if progress is not None:
            progress(min(first + BATCH, len(covered)), len(covered))
    weights = covered.flatten(1).float()  # (M, H * W)
    total = torch.cat(falls).T @ weights  # (K, H * W)
    return (total / weights.sum(0)).relu().unflatten(1, (height, width))


@torch.no_grad()
def encode(clip: CLIP, images: Tensor) -> Tensor:
    """Unit vectors (B, E) of images (B, 3, H, W), a few at a time."""
    return torch.cat([clip.encode_image(part) for part in images.split(BATCH)])


def _windows(height: int, width: int, device: torch.device) -> Tensor:
    """Every place of the covering windows, (M, H, W) bool."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    masks = []
    for parts in WINDOWS:
        tall, wide = -(-height // parts), -(-width // parts)
        for top in _starts(height, tall):
            for left in _starts(width, wide):
                inside = ((rows >= top) & (rows < top + tall))[:, None] & (columns >= left) & (columns < left + wide)
                masks.append(inside)
    return torch.stack(masks)


def _starts(side: int, window: int) -> list[int]:
    return sorted({min(start, side - window) for start in range(0, side, max(1, window // 2))})
