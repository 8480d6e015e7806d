"""Measures how many of the recipe's questions about emoji a captioner answers correctly, for each question.

    python recipes/emoji/ask_emoji.py emoji emoji.parquet --pictures 150
    python recipes/emoji/ask_emoji.py emoji emoji.parquet --captioner runs/emoji/captioner/model --split train

An answer is correct if it matches word for word. The second column is the accuracy of always giving the most frequent
answer.
"""

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ask_scenes import open_reader

from codebrush.pack.pack import open_pack
from codebrush.training.dataset import load_captioned
from codebrush.training.recipes import read_recipe
from codebrush.training.tasks.captioner import CaptionerRecipe
from codebrush.training.tasks.captioner_pairs import CaptionPairs

RECIPE = Path(__file__).parent / "captioner" / "captioner-9.yaml"


@torch.no_grad()
def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("data", type=Path)
    parser.add_argument("--captioner", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pictures", type=int, default=150)
    options = parser.parse_args()
    pack = open_pack(options.pack)
    reader = open_reader(pack, options.captioner)
    run_recipe = read_recipe(RECIPE, str(options.data), "captioner")
    recipe = run_recipe.plan.recipe
    assert isinstance(recipe, CaptionerRecipe)
    with tempfile.TemporaryDirectory() as cache:
        data = load_captioned(
            replace(run_recipe.sources[0], split=options.split).open(), pack.clip.image_size, Path(cache)
        )
    rows = np.linspace(0, len(data) - 1, min(options.pictures, len(data))).astype(int)
    print(f"| {len(rows)} pictures of {options.split} | right | most frequent answer |\n|---|---|---|")
    for rule in recipe.questions:
        pairs, rng = CaptionPairs((rule,), data), np.random.default_rng(0)
        wanted, given = [], []
        for row in rows.tolist():
            pixels = data.images(np.array([row])).float() / 255
            for asked, answer in pairs.questions(row, rng)[:1]:
                wanted.append(answer)
                given.append(reader.ask(pixels, [asked], threshold=0.0)[0].guess)
        right = np.mean([one == other for one, other in zip(wanted, given, strict=True)])
        commonest = Counter(wanted).most_common(1)[0][1] / len(wanted)
        print(f"| {rule.ask[0]} | {right:.1%} | {commonest:.1%} |", flush=True)


if __name__ == "__main__":
    main()
