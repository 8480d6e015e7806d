"""Measures what the scores of a pack's scorer mean and writes it into its pack.json as "scores".

    python recipes/emoji/score_levels.py src/codebrush/packs/emoji emoji.parquet --judge runs/emoji/judge/model --write

Labels of the train and of the val split are drawn, and a CLIP that took no part (--judge) says whether
it finds the label of a drawing among 100; of each prompt the best and the worst of four count. A logistic regression
fits the chance of that to the score: `likely` is the score at which it is three in five, and `unlikely` that at which
it is one in ten. The report has the shares of the verdicts for drawings of both splits, for true pictures and for
guided decoys, and how many drawings of each verdict the judge finds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import Judge, emoji, labels_of
from PIL import Image
from sklearn.linear_model import LogisticRegression

from codebrush import Codebrush
from codebrush.generation.scoring import LIKELY, UNLIKELY, UNSURE, Levels
from codebrush.pack.writing import add_entries

TRUE = 400  # pictures of each split
LIKELY_SHARE, UNLIKELY_SHARE = 0.6, 0.1  # the chance that the judge finds a drawing of that score
VERDICTS = (LIKELY, UNSURE, UNLIKELY)
Drawn = list[tuple[float, bool]]  # the score of each drawing, and whether the judge finds its label


def levels_of(drawn: Drawn) -> Levels:
    """The levels that the drawings give. Raises ValueError if scores say nothing about what the judge finds."""
    scores, found = np.array([score for score, _ in drawn]), np.array([right for _, right in drawn])
    middle, spread = scores.mean(), scores.std()
    fit = LogisticRegression(C=np.inf).fit(((scores - middle) / spread)[:, None], found)
    slope, offset = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    if slope <= 0:
        raise ValueError("the judge does not find more of the drawings with higher scores: draw more prompts")
    at = [middle + spread * (np.log(share / (1 - share)) - offset) / slope for share in (LIKELY_SHARE, UNLIKELY_SHARE)]
    return Levels(round(float(at[0]), 4), round(float(at[1]), 4))


def draw(brush: Codebrush, judge: Judge, labels: list[str], count: int, rng: np.random.Generator) -> Drawn:
    """The best and the worst of four drawings of each of `count` labels, as the scorer and the judge see it."""
    drawn = []
    for label in [labels[place] for place in rng.permutation(len(labels))[:count]]:
        made = brush.generate(label, n=4, rerank=4)
        others = [int(place) for place in rng.permutation(len(labels)) if labels[place] != label][:99]
        for one in (made[0], made[-1]):
            drawn.append((float(one.judged or 0), judge(one.image, label, others)[1]))
        print(
            f"{label}: " + ", ".join(f"{score:.3f} {'found' if found else ''}" for score, found in drawn[-2:]),
            flush=True,
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("parquet")
    parser.add_argument("--judge", required=True, help="folder of a CLIP that takes no part")
    parser.add_argument("--decoys", type=Path, help="folder of decoys with caption files")
    parser.add_argument("--prompts", type=int, default=100, help="of each split")
    parser.add_argument("--write", action="store_true", help="write the levels into the pack")
    given = parser.parse_args()
    brush = Codebrush.from_pretrained(given.pack)
    scorer, rng = brush.scorer, np.random.default_rng(0)
    if scorer is None:
        parser.error(f"{given.pack} has no scorer")
    true: dict[str, list[float]] = {}
    drawn: dict[str, Drawn] = {}
    for split in ("train", "val"):
        rows = emoji(given.parquet, split)
        labels = labels_of(rows)
        some = rng.permutation(len(rows))[:TRUE]
        true[split] = [scorer.scores([rows.image(row)], scorer.embed(rows.captions(row)), [1.0])[0] for row in some]
        drawn[split] = draw(brush, Judge(given.judge, labels), labels, given.prompts, rng)
    levels = levels_of([each for split in drawn.values() for each in split])

    def shares(scores: list[float]) -> dict[str, float]:
        said = [levels.verdict(score) for score in scores]
        return {verdict: round(said.count(verdict) / max(1, len(said)), 3) for verdict in VERDICTS}

    figures: dict[str, Any] = {f"true, {split}": shares(scores) for split, scores in true.items()}
    for split, found in drawn.items():
        figures[f"drawn, {split}"] = shares([score for score, _ in found])
        for verdict in VERDICTS:
            right = [each for score, each in found if levels.verdict(score) == verdict]
            figures[f"drawn, {split}: found of those {verdict}"] = f"{sum(right)} of {len(right)}"
    if given.decoys:
        files = sorted(given.decoys.glob("*.png"))
        texts = [scorer.embed([file.with_suffix(".txt").read_text()]) for file in files]
        pairs = zip(files, texts, strict=True)
        figures["decoys"] = shares([scorer.scores([Image.open(file)], text, [1.0])[0] for file, text in pairs])
    measured = {"likely": levels.likely, "unlikely": levels.unlikely}
    print(json.dumps({**measured, **figures}, indent=2))
    if given.write:
        add_entries(given.pack, {"scores": measured})


if __name__ == "__main__":
    with torch.no_grad():
        main()
