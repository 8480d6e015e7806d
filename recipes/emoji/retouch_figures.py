"""Measures whether retouching makes drawings better, by CLIPs that take no part, and what it costs.

    python recipes/emoji/retouch_figures.py emoji emoji.parquet --judge runs/emoji/scorer/model \
        --judge runs/emoji/judge/model --rounds 0,1,2,4 --out retouched

One candidate of each prompt, a label of the train split in one of the pack's styles, is drawn and retouched in so many
rounds, from the same seeds. Prints, for each number of rounds, the mean cosine of each judge, how often it is above and
below that without rounds by more than LEAST, how often the judge puts the label first among all labels, and the seconds
a picture. OUT/sheet.png has a row of pictures for each prompt.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from judging import Judge, emoji, labels_of

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import save_png

LEAST = 0.005  # cosine below which two pictures are as good as each other
SHOWN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--judge", action="append", required=True, help="folder of a CLIP that takes no part")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--rounds", default="0,1,2,4")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    brush = Codebrush.from_pretrained(given.pack)
    styles = ", ".join(map(repr, brush.pack.styles[1]))
    labels = labels_of(emoji(given.parquet, "train", f"style in ({styles})"))
    prompts = [labels[place] for place in np.random.default_rng(2).permutation(len(labels))[: given.prompts]]
    pictures, seconds = {}, {}
    for rounds in map(int, given.rounds.split(",")):
        began = time.monotonic()
        pictures[rounds] = [
            brush.generate(prompt, n=1, rerank=1, seed=number, retouch=rounds)[0].image
            for number, prompt in enumerate(prompts)
        ]
        seconds[rounds] = (time.monotonic() - began) / len(prompts)
    everyone = list(range(len(labels)))
    for source in given.judge:
        judge = Judge(source, labels)
        others = {prompt: [place for place in everyone if labels[place] != prompt] for prompt in prompts}
        found = {
            rounds: np.array(
                [judge(image, prompt, others[prompt]) for image, prompt in zip(made, prompts, strict=True)]
            )
            for rounds, made in pictures.items()
        }
        plain = found[min(found)][:, 0]
        for rounds, figures in found.items():
            gain = figures[:, 0] - plain
            print(
                f"{source}: {rounds} rounds: cosine {figures[:, 0].mean():.3f}, better {(gain > LEAST).sum()}, "
                f"worse {(gain < -LEAST).sum()}, gain {gain.mean():+.4f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.4f}, "
                f"first {figures[:, 1].mean():.0%}, {seconds[rounds]:.2f} s"
            )
    shown = [made[place] for place in range(min(SHOWN, len(prompts))) for made in pictures.values()]
    names = [f"{prompt}, {rounds}" for prompt in prompts[:SHOWN] for rounds in pictures]
    save_png(contact_sheet(shown, names, columns=2 * len(pictures)), given.out / "sheet.png")


if __name__ == "__main__":
    main()
