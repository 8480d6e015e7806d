"""Scores of captions: the same cosines as for one picture and one caption at a time."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from codebrush.data.curation.clip_scorer import ClipScorer
from codebrush.data.preprocess import pixels_for
from codebrush.data.synthetic.shapes import scene
from packs import micro_clip, micro_tokenizer


@pytest.mark.parametrize("mode", ["plain", "crop", "squeeze"])
def test_scores_are_those_of_the_whole_picture(mode: str, monkeypatch: pytest.MonkeyPatch):
    """For every way of resizing, and whatever else is in the batch."""
    monkeypatch.setattr("codebrush.data.curation.clip_scorer.BATCH", 2)
    clip, tokenizer = micro_clip(), micro_tokenizer()
    clip.config = replace(clip.config, resize_mode=mode)
    pictures: list[Image.Image] = [scene(0, number, 48).image.resize((80, 48)) for number in range(3)]
    captions = [["a red circle"], ["a blue square", "a green triangle"], ["a red circle", "red " * 200]]
    scorer = ClipScorer(clip, tokenizer)
    found = scorer([scorer.thumbnail(picture) for picture in pictures], captions)
    for picture, own, score in zip(pictures, captions, found, strict=True):
        with torch.inference_mode():
            image = clip.encode_image(pixels_for(clip, [picture]))  # (1, E)
            best = max((image @ clip.encode_text(tokenizer(text, on_long="truncate")).T).item() for text in own)
        assert score == pytest.approx(best, abs=1e-5)
