"""What the scripts that measure drawings share: the labels of the emoji, and a CLIP that judges pictures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import stack
from codebrush.data.sources.captioned_images import CaptionedImages, open_source
from codebrush.pack.pack import open_clip

NO_TONE = "skin_tone is null"


def emoji(parquet: str | Path, split: str | None = None, *where: str) -> CaptionedImages:
    """The pictures of a split (None: of all) without a skin tone that meet more conditions, captioned with labels."""
    return open_source(parquet, split=split, where=(NO_TONE, *where), captions=("{label}",))


def labels_of(rows: CaptionedImages) -> list[str]:
    """The labels of some pictures, each once, sorted."""
    return sorted({rows.captions(row)[0] for row in range(len(rows))})


def some_of(labels: list[str], count: int) -> list[str]:
    """`count` of the labels, always the same ones, in their order."""
    return [labels[place] for place in sorted(np.random.default_rng(1).choice(len(labels), count, replace=False))]


def evaluated(pack: str | Path, parquet: str, split: str, *more: str) -> dict[str, Any]:
    """The report of `codebrush evaluate` on a split without skin tones, captioned with labels, drawing left out."""
    asked = ("--split", split, "--where", NO_TONE, "--caption", "{label}", "--leave-out", "drawing", "--json", *more)
    command = (sys.executable, "-m", "codebrush", "evaluate", str(pack), parquet, *asked)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Judge:
    """Scores by one CLIP: the cosine with the prompt, and whether the prompt beats others of its labels."""

    def __init__(self, source: str, labels: list[str]):
        self.clip, self.tokenizer = open_clip(source)
        with torch.no_grad():
            self.texts = torch.cat([self.clip.encode_text(self.tokenizer([label])) for label in labels])
        self.labels = labels

    @torch.no_grad()
    def __call__(self, image: Image.Image, prompt: str, others: list[int]) -> tuple[float, bool]:
        """The figures of a picture; `others` are the places of the labels that it is compared with."""
        embedding = self.clip.encode_image(stack([image], self.clip.image_size))[0]
        cosines: Tensor = self.texts @ embedding
        own = cosines[self.labels.index(prompt)]
        return float(own), bool((cosines[others] < own).all())
