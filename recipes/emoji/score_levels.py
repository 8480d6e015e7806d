"""Measures what the scores of a pack's scorer mean, on the val split, and writes it into its pack.json as "scores".

    python recipes/emoji/score_levels.py src/codebrush/packs/emoji emoji.parquet --judge runs/emoji/judge/model --write

`unlikely`: one in twenty pictures that the pack drew scores more with the labels of others. `likely`: the score that
best separates drawings whose label a CLIP that took no part (--judge) finds among 100 from the others (Youden's index),
if that is higher. The report has the shares of the verdicts for drawings, true pictures and guided decoys (`deceived`),
and how many drawings of each the judge finds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_ways import Scores
from PIL import Image

from codebrush import Codebrush
from codebrush.data.sources.captioned_images import open_source
from codebrush.files import write_json
from codebrush.generation.scoring import LIKELY, UNLIKELY, UNSURE, Levels
from codebrush.pack.pack import PACK_FILE

OTHERS = 20  # labels of others that each drawing is scored against


def quantile(scores: list[float], share: float) -> float:
    return round(float(np.quantile(scores, share)), 4)


def separating(drawn: list[tuple[float, bool]]) -> float:
    """The score that separates found from other drawings best: the one with the highest Youden's index."""
    found = np.array([right for _, right in drawn])
    scores = np.array([score for score, _ in drawn])
    return max(sorted(scores), key=lambda least: (scores >= least)[found].mean() - (scores >= least)[~found].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("parquet")
    parser.add_argument("--judge", required=True, help="folder of a CLIP that takes no part")
    parser.add_argument("--decoys", type=Path, help="folder of decoys with caption files")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="write the levels into the pack")
    given = parser.parse_args()
    brush = Codebrush.from_pretrained(given.pack)
    scorer, rng = brush.scorer, np.random.default_rng(0)
    if scorer is None:
        parser.error(f"{given.pack} has no scorer")
    rows = open_source(given.parquet, split="val", where=("skin_tone is null",), captions=("{label}",))
    captions = [rows.captions(row)[0] for row in range(len(rows))]
    labels = sorted(set(captions))
    texts = scorer.embed(labels)
    place = {label: number for number, label in enumerate(labels)}

    def score(picture: Image.Image, label: str) -> float:
        return scorer.scores([picture], texts[place[label]][None], [1.0])[0]

    true = [score(rows.image(row), captions[row]) for row in range(len(rows))]
    judge, drawn, wrong = Scores(given.judge, labels), [], []
    for label in labels[: given.prompts]:
        best = brush.generate(label, n=1, rerank=4)[0]
        others = [int(each) for each in rng.permutation(len(labels)) if labels[each] != label][:99]
        drawn.append((score(best.image, label), judge(best.image, label, others)[1]))
        wrong += [score(best.image, labels[each]) for each in others[:OTHERS]]
        print(f"{label}: {drawn[-1][0]:.3f} {'found' if drawn[-1][1] else ''}", flush=True)
    unlikely = quantile(wrong, 0.95)
    levels = Levels(max(unlikely, round(separating(drawn), 4)), unlikely)

    def shares(scores: list[float]) -> dict[str, float]:
        return {
            each: round(sum(levels.verdict(s) == each for s in scores) / max(1, len(scores)), 3) for each in VERDICTS
        }

    figures: dict[str, Any] = {"true": shares(true), "drawn": shares([s for s, _ in drawn]), "of others": shares(wrong)}
    for verdict in VERDICTS:
        found = [right for s, right in drawn if levels.verdict(s) == verdict]
        figures[f"found if {verdict}"] = [sum(found), len(found)]
    if given.decoys:
        pictures = sorted(given.decoys.glob("*.png"))
        figures["deceived"] = shares([
            scorer.scores([Image.open(file)], scorer.embed([file.with_suffix(".txt").read_text()]), [1.0])[0]
            for file in pictures
        ])  # fmt: skip
    measured = {"likely": levels.likely, "unlikely": levels.unlikely}
    print(json.dumps({**measured, **figures}, indent=2))
    if given.write:
        info = json.loads((given.pack / PACK_FILE).read_text(encoding="utf-8"))
        write_json(given.pack / PACK_FILE, {**info, "scores": measured})


VERDICTS = (LIKELY, UNSURE, UNLIKELY)

if __name__ == "__main__":
    with torch.no_grad():
        main()
