"""Scores finished pictures by a pack's scorer, a second CLIP that guides nothing, and says what a score means.

The CLIP that guided a picture likes it by construction, and one that ranked many has chosen what it overrates. The
scorer was trained with pictures made to deceive another CLIP (see `codebrush.training.tasks.decoys`), and took no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import stack
from codebrush.data.text_embedding import embed_texts
from codebrush.errors import PackError
from codebrush.generation.manifest import judged_manifest
from codebrush.generation.result import Result
from codebrush.generation.sampling.reranking import clip_scores
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer

BATCH = 256  # texts encoded together
LIKELY, UNSURE, UNLIKELY = "likely", "unsure", "unlikely"


@dataclass(frozen=True)
class Levels:
    """What scores mean for a pack, measured on its drawings by a CLIP that took no part.

    By a logistic regression it finds the label among 100 for three in five of the drawings that score `likely`, and for
    one in ten of those that score `unlikely` (see recipes/emoji/score_levels.py).
    """

    likely: float
    unlikely: float

    @classmethod
    def of_pack(cls, info: Mapping[str, Any]) -> "Levels | None":
        """The levels in a pack.json; None if they were not measured. Raises PackError if they are no numbers."""
        found = info.get("scores")
        if found is None:
            return None
        try:
            return cls(float(found["likely"]), float(found["unlikely"]))
        except (KeyError, TypeError, ValueError):
            raise PackError(f"the pack's 'scores' must hold the numbers likely and unlikely, not {found!r}") from None

    def verdict(self, score: float) -> str:
        """Whether a picture of this score shows its prompt: "likely", "unsure" or "unlikely"."""
        return LIKELY if score >= self.likely else UNSURE if score >= self.unlikely else UNLIKELY


@dataclass(frozen=True, eq=False)
class Scorer:
    """The scorer of a pack, on its device, with the meaning of its scores and the sha256 of its files."""

    clip: CLIP
    tokenizer: Tokenizer
    levels: Levels | None
    digest: str

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors (P, E) in the scorer's own space."""
        with torch.no_grad():
            return embed_texts(self.clip, self.tokenizer, texts, BATCH, "truncate")

    def scores(self, pictures: Sequence[Image.Image], texts: Tensor, weights: Sequence[float]) -> list[float]:
        """How well pictures fit a prompt, -1 to 1 each: see `clip_scores`. `texts` (P, E) come from `embed`."""
        pixels = stack(pictures, self.clip.image_size).to(self.clip.log_scale.device)
        return clip_scores(self.clip, pixels, texts, weights).tolist()

    def judge(
        self, results: Sequence[Result], pictures: Sequence[Image.Image], texts: Tensor, weights: Sequence[float]
    ) -> list[Result]:
        """The results with the scores of their `pictures` and what these mean, also in their manifests."""
        scores = self.scores(pictures, texts, weights)
        return [self._judged(result, score) for result, score in zip(results, scores, strict=True)]

    def _judged(self, result: Result, score: float) -> Result:
        verdict = None if self.levels is None else self.levels.verdict(score)
        return replace(result, judged=score, verdict=verdict, manifest=judged_manifest(result.manifest, score, verdict))
