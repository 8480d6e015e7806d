"""CLIP scores and the order of pictures by them."""

import math

import pytest
import torch

from codebrush.generation.sampling.reranking import best_first, clip_scores
from packs import micro_clip


@pytest.mark.parametrize("weights", [(1.0,), (2.0,), (0.5, 0.5), (1.0, -0.5, 0.25)])
def test_scores_are_weighted_cosines(weights: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    clip = micro_clip()
    images = torch.rand(3, 3, 32, 32)
    texts = torch.nn.functional.normalize(torch.randn(len(weights), 24), dim=1)
    scores = clip_scores(clip, images, texts, weights)
    for image, score in zip(images, scores, strict=True):
        vector = clip.encode_image(image[None])[0].detach()
        cosines = [float(torch.cosine_similarity(vector, text, dim=0)) for text in texts]
        expected = sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(map(abs, weights))
        assert float(score) == pytest.approx(expected, abs=1e-6)
    assert not scores.requires_grad


def test_best_comes_first_ties_keep_their_order_and_nan_comes_last() -> None:
    assert best_first([0.1, math.nan, 0.5, 0.1, -1.0]) == [2, 0, 3, 4, 1]
