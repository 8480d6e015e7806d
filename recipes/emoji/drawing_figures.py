"""Measures how well a pack's pictures follow their prompts, and prints the figures as JSON.

    python recipes/emoji/drawing_figures.py PACK emoji.parquet --judge runs/emoji/judge-2/model \
        --style-classifier runs/emoji/style_classifier

For labels of training concepts: how often the training picture that is nearest in pixels (at 64 x 64) to a single
sample has the label of the prompt; how often a second CLIP finds the label among 100, for single samples, for the best
of eight and for true pictures; how often single samples have the style in the prompt. For labels of the test split,
which no model of the pack has seen, but the second CLIP has: the second CLIP alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import emoji, labels_of, some_of
from PIL import Image
from style_classifier import ASKED, KINDS, load, predicted_styles

from codebrush import Codebrush
from codebrush.data.decoding.images import stack, to_pil
from codebrush.evaluation.alignment import r_precision
from codebrush.evaluation.rows import embed_texts
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.text.tokenizer import Tokenizer

SIDE = 64  # at which pixels are compared
RERANK = 8


class Known:
    """The true pictures of a split, reduced to SIDE, with their labels."""

    def __init__(self, parquet: str, split: str):
        source = emoji(parquet, split)
        self.labels = [source.captions(row)[0] for row in range(len(source))]
        parts = [stack([source.image(row)], SIDE) for row in range(len(source))]
        self.pixels = torch.cat(parts).flatten(1)  # (N, 3 S S)

    def picture(self, label: str) -> Image.Image:
        """The first picture of a label."""
        return to_pil(self.pixels[self.labels.index(label)].view(3, SIDE, SIDE))

    def nearest(self, picture: Image.Image) -> str:
        """The label of the nearest picture by mean squared error."""
        apart = self.pixels - stack([picture], SIDE).flatten(1)
        return self.labels[int(apart.square_().sum(1).argmin())]


@torch.no_grad()
def found_by(
    judge: CLIP, tokenizer: Tokenizer, pictures: list[Image.Image], prompts: list[str], labels: list[str]
) -> Any:
    """How often the CLIP `judge` finds a picture's prompt among 100 of `labels`."""
    images = judge.encode_image(stack(pictures, judge.image_size))
    texts = embed_texts(judge, tokenizer, labels)
    return r_precision(images, [labels.index(prompt) for prompt in prompts], texts, seed=0)


def drawn(brush: Codebrush, prompts: list[str], rerank: int) -> tuple[list[Image.Image], float]:
    """One picture for each prompt, and the mean seconds a prompt."""
    started = time.monotonic()
    pictures = [
        brush.generate(prompt, n=1, seed=number, rerank=rerank)[0].image for number, prompt in enumerate(prompts)
    ]
    return pictures, (time.monotonic() - started) / len(prompts)


def drawing(
    brush: Codebrush, parquet: str, judge: Path, style_classifier: Path, count: int
) -> tuple[dict[str, Any], list[Image.Image]]:
    """All figures, for `count` training labels, and the best pictures of all labels of the test split."""
    (clip, tokenizer), styles = open_clip(judge), load(style_classifier)
    train, test = (labels_of(emoji(parquet, split)) for split in ("train", "test"))
    prompts = some_of(train, count)
    known, other = Known(parquet, "train"), Known(parquet, "test")
    single, seconds = drawn(brush, prompts, 1)
    best, longer = drawn(brush, prompts, RERANK)
    unseen, _ = drawn(brush, test, RERANK)
    asked = [ASKED[number % len(ASKED)] for number in range(count)]
    styled, _ = drawn(brush, [f"{prompt}, {style} style" for prompt, style in zip(prompts, asked, strict=True)], 1)
    predicted = predicted_styles(styles, styled)
    right = {
        style: [KINDS[one] == KINDS[style] for one, its in zip(predicted, asked, strict=True) if its == style]
        for style in ASKED
    }
    near = [known.nearest(picture) for picture in single]
    every = sorted({*train, *test})
    figures = {
        "prompts": count,
        "unseen prompts": len(test),
        "nearest_picture_is_right": float(np.mean([one == other for one, other in zip(near, prompts, strict=True)])),
        "true pictures": found_by(clip, tokenizer, [known.picture(prompt) for prompt in prompts], prompts, train),
        "single": found_by(clip, tokenizer, single, prompts, train),
        "best of 8": found_by(clip, tokenizer, best, prompts, train),
        "true pictures, unseen": found_by(clip, tokenizer, [other.picture(label) for label in test], test, every),
        "unseen, best of 8": found_by(clip, tokenizer, unseen, test, every),
        "style_is_followed": float(np.mean([hit for hits in right.values() for hit in hits])),
        "every_style": float(np.mean([one == its for one, its in zip(predicted, asked, strict=True)])),
        "style_by_style": {style: float(np.mean(hits)) for style, hits in right.items() if hits},
        "seconds_a_prompt": {"single": seconds, "best of 8": longer},
    }
    return figures, unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--style-classifier", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args()
    brush = Codebrush.from_pretrained(options.pack)
    figures, _ = drawing(brush, options.parquet, options.judge, options.style_classifier, options.prompts)
    print(json.dumps({"pack": f"{brush.pack.info['name']} {brush.pack.info['version']}", **figures}, indent=2))


if __name__ == "__main__":
    main()
