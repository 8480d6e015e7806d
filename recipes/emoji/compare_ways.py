"""Compares methods of generation (sampling, retrieval, guidance) on prompts of the test split, in the same time.

    python recipes/emoji/compare_ways.py PACK emoji.parquet --judge runs/emoji/judge/model --seconds 6 --out FOLDER

Every method gets the same wall time for a prompt. Two CLIPs score its result: the pack's own, which ranks and guides,
and a second one (--judge) that took no part; "finds it" is R-precision, the share of pictures whose prompt is the
nearest of the split's labels. Prints a table and writes a sheet with a row for each prompt.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import Judge, emoji, labels_of
from PIL import Image

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import save_png, to_pil
from codebrush.generation.sampling.reranking import best_first

NEVER = 1_000_000  # steps: every run ends earlier, by its time
CANDIDATES = 16  # sampled in one batch
SHOWN = 12
Way = Callable[[str, float], Image.Image]


def drawn_by(brush: Codebrush, **options: Any) -> Way:
    """Samples candidates until the time is over and keeps the best by the pack's CLIP."""

    def draw(prompt: str, seconds: float) -> Image.Image:
        started, seed, best = time.monotonic(), 0, []
        while not best or (time.monotonic() - started) * (seed + 1) / seed < seconds:
            best += brush.generate(prompt, n=1, seed=seed, rerank=CANDIDATES, **options)
            seed += 1
        return best[best_first([result.score for result in best])[0]].image

    return draw


def guided(brush: Codebrush, **options: Any) -> Way:
    """Guides until the time is over, which includes making the initial latent."""

    def draw(prompt: str, seconds: float) -> Image.Image:
        started = time.monotonic()
        run = brush.guide(prompt, steps=NEVER, show_every=0, **options)
        for step in run:
            if (time.monotonic() - started) * (step.step + 1) / step.step > seconds:
                break
        return to_pil(step.images()[0])

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--judge", required=True, help="folder of the second CLIP")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--options", default="{}", help="options of guidance, as JSON")
    parser.add_argument("--split", default="test")
    parser.add_argument("--ways", default="sample,retrieval prior,learned prior,guide")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(2)
    brush = Codebrush.from_pretrained(given.pack)
    labels = labels_of(emoji(given.parquet, given.split))
    rng = np.random.default_rng(0)
    prompts = [labels[index] for index in rng.choice(len(labels), min(given.prompts, len(labels)), replace=False)]
    options = json.loads(given.options)
    all_ways: dict[str, Way] = {
        "guide": guided(brush, **options),
        "sample": drawn_by(brush),
        "retrieval prior": drawn_by(brush, method="retrieve"),
        "nearest neighbour": drawn_by(brush, method="retrieve", neighbours=1),
        "learned prior": drawn_by(brush, method="retrieve", prior="mlp"),
        "no prior": drawn_by(brush, method="retrieve", prior="none"),
        "sample then guide": guided(brush, preset="refine", sampling={"rerank": CANDIDATES}, **options),
    }
    ways = {name: all_ways[name] for name in given.ways.split(",")}
    judges = {"own": Judge(given.pack, labels), "second": Judge(given.judge, labels)}
    found: dict[str, list[tuple[float, bool, float, bool, float]]] = {name: [] for name in ways}
    drawn: list[tuple[Image.Image, str]] = []
    brush.generate(prompts[0], n=1, rerank=1)  # loads the models before any time is taken
    for number, prompt in enumerate(prompts):
        others = [int(i) for i in rng.choice(len(labels), min(100, len(labels)), replace=False) if labels[i] != prompt]
        for name, way in ways.items():
            started = time.monotonic()
            image = way(prompt, given.seconds)
            seconds = time.monotonic() - started
            own, second = (judge(image, prompt, others[:99]) for judge in judges.values())
            found[name].append((*own, *second, seconds))
            if number < SHOWN:
                drawn.append((image, f"{prompt}: {name}"))
        print(f"{number + 1}/{len(prompts)} {prompt}", flush=True)
    print("| way | own CLIP | own finds it | second CLIP | second finds it | seconds |\n|---|---|---|---|---|---|")
    for name, rows_found in found.items():
        table = np.array(rows_found, dtype=float)
        mean, spread = table.mean(0), table.std(0) / len(table) ** 0.5
        cells = [f"{mean[0]:.3f} ± {spread[0]:.3f}", f"{mean[1]:.0%}", f"{mean[2]:.3f} ± {spread[2]:.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {mean[3]:.0%} | {mean[4]:.1f} |")
    sheet = contact_sheet([image for image, _ in drawn], [text for _, text in drawn], len(ways))
    save_png(sheet, given.out / "ways.png")


if __name__ == "__main__":
    main()
