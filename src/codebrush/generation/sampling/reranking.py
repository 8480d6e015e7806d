"""Scores pictures by how well CLIP finds that they fit a weighted prompt, and sorts them best first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from codebrush.models.clip import CLIP


@torch.no_grad()
def clip_scores(clip: CLIP, images: Tensor, texts: Tensor, weights: Sequence[float] = (1.0,)) -> Tensor:
    """How well images (B, 3, H, W) in [0, 1] fit a prompt: (B,) float32 from -1 to 1.

    `texts` (P, E) are the unit embeddings of the prompt's parts, `weights` their P weights. The score is the
    cosine for one text and sum(w cos) / sum(|w|) for several, so a part of negative weight counts against.
    """
    cosines = clip.encode_image(images) @ texts.T  # (B, P)
    share = torch.tensor(weights, device=cosines.device, dtype=cosines.dtype)
    return cosines @ (share / share.abs().sum())


def best_first(scores: Sequence[float]) -> list[int]:
    """Positions from the highest score to the lowest; equal scores keep their order and NaN comes last."""
    return sorted(range(len(scores)), key=lambda index: (scores[index] != scores[index], -scores[index]))
