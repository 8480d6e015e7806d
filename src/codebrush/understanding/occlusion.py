"""A picture and directions in CLIP's space in; how far the cosine falls where the picture is covered, out.

The slow reference: it asks nothing of the encoder but its answers (Zeiler and Fergus 2014, section 4.2).
"""

import torch
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.progress import Progress

BATCH = 64  # pictures encoded together
# Sides of the covering window, as parts of the picture's, and how many of its steps fill it. Small ones see detail,
# large ones wholes; in steps of half its side a large one misses what stands between two places.
WINDOWS = ((4, 4), (8, 2))


def occlusion(clip: CLIP, image: Tensor, directions: Tensor, progress: Progress | None = None) -> Tensor:
    """One image (3, H, W) in [0, 1] and directions (K, E) -> maps (K, H, W), 0 or more.

    Windows of a quarter and of an eighth of the picture, overlapping, show its mean colour instead: a blurred picture
    would still show the colour of what it hides. A pixel's value is the mean fall of the cosine over the windows of a
    size that cover it, and of that the mean over both sizes.
    """
    height, width = image.shape[-2:]
    grey, sizes = image.mean((1, 2), keepdim=True), [_windows(height, width, *each) for each in WINDOWS]
    covered = torch.cat(sizes).to(image.device)  # (M, H, W) bool
    whole = encode(clip, image.unsqueeze(0)) @ directions.T  # (1, K)
    falls = []
    for first in range(0, len(covered), BATCH):
        part = covered[first : first + BATCH].unsqueeze(1)  # (B, 1, H, W)
        falls.append(whole - encode(clip, torch.where(part, grey, image)) @ directions.T)
        if progress is not None:
            progress(min(first + BATCH, len(covered)), len(covered))
    counts = [len(each) for each in sizes]
    means = []
    for fall, part in zip(torch.cat(falls).split(counts), covered.flatten(1).float().split(counts), strict=True):
        means.append(fall.T @ part / part.sum(0))  # (K, H * W)
    return torch.stack(means).mean(0).relu().unflatten(1, (height, width))


@torch.no_grad()
def encode(clip: CLIP, images: Tensor) -> Tensor:
    """Unit vectors (B, E) of images (B, 3, H, W), a few at a time."""
    return torch.cat([clip.encode_image(part) for part in images.split(BATCH)])


def _windows(height: int, width: int, parts: int, steps: int) -> Tensor:
    """Every place of a covering window, (M, H, W) bool."""
    rows, columns = torch.arange(height), torch.arange(width)
    tall, wide = -(-height // parts), -(-width // parts)
    masks = [
        ((rows >= top) & (rows < top + tall))[:, None] & (columns >= left) & (columns < left + wide)
        for top in _starts(height, tall, steps)
        for left in _starts(width, wide, steps)
    ]
    return torch.stack(masks)


def _starts(side: int, window: int, steps: int) -> list[int]:
    return sorted({min(start, side - window) for start in range(0, side, max(1, window // steps))})
