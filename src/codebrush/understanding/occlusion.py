"""Occlusion maps: how far a picture's cosine with a direction falls when a part of the picture is covered.

Slow, but needs nothing from the encoder except its embeddings (Zeiler and Fergus 2014, section 4.2).
"""

import torch
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.progress import Progress

BATCH = 64  # pictures encoded together
# What a CLIP sees of one picture that is covered or replaced in ways that no text changes: embeddings by what they are.
# Maps of further texts need not encode it again.
Kept = dict[str, Tensor]
# Two sizes of window, as (picture side / window side, window side / step). Small windows find details, large ones whole
# objects; a large window in steps of half its side misses an object between two of its places.
WINDOWS = ((4, 4), (8, 2))


def occlusion_maps(
    clip: CLIP, image: Tensor, directions: Tensor, progress: Progress | None = None, kept: Kept | None = None
) -> Tensor:
    """One image (3, H, W) in [0, 1] and directions (K, E) -> maps (K, H, W), values 0 or more.

    Overlapping windows of a quarter and of an eighth of the picture's side are filled with its mean colour (a blur
    would still show the colour of what it hides). A pixel's value is the mean fall of the score over the windows of
    one size that cover it, averaged over both sizes. `kept` is filled, and used by maps of the same picture.
    """
    height, width = image.shape[-2:]
    sizes = [_windows(height, width, *each) for each in WINDOWS]
    covered = torch.cat(sizes).to(image.device)  # (M, H, W) bool
    whole = encode_in_batches(clip, image.unsqueeze(0)) @ directions.T  # (1, K)
    kept = {} if kept is None else kept
    if "covered" not in kept:
        kept["covered"] = _encode_covered(clip, image, covered, progress)  # (M, E)
    elif progress is not None:
        progress(len(covered), len(covered))
    falls = [whole - part @ directions.T for part in kept["covered"].split(BATCH)]
    counts = [len(each) for each in sizes]
    means = []
    for fall, part in zip(torch.cat(falls).split(counts), covered.flatten(1).float().split(counts), strict=True):
        means.append(fall.T @ part / part.sum(0))  # (K, H * W)
    return torch.stack(means).mean(0).relu().unflatten(1, (height, width))


def _encode_covered(clip: CLIP, image: Tensor, covered: Tensor, progress: Progress | None) -> Tensor:
    """The picture with its mean colour in each of the windows (M, H, W): unit vectors (M, E)."""
    grey, found = image.mean((1, 2), keepdim=True), []
    for first in range(0, len(covered), BATCH):
        part = covered[first : first + BATCH].unsqueeze(1)  # (B, 1, H, W)
        found.append(encode_in_batches(clip, torch.where(part, grey, image)))
        if progress is not None:
            progress(min(first + BATCH, len(covered)), len(covered))
    return torch.cat(found)


@torch.no_grad()
def encode_in_batches(clip: CLIP, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> unit vectors (B, E), at most `BATCH` images in memory at a time."""
    return torch.cat([clip.encode_image(part) for part in images.split(BATCH)])


def _windows(height: int, width: int, parts: int, steps: int) -> Tensor:
    """A mask for every place of the window, (M, H, W) bool: true where it covers the picture."""
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
