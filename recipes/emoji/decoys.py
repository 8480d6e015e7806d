"""Makes decoys to train a scorer with: pictures that guidance by another CLIP made and that show nothing.

    python recipes/emoji/decoys.py emoji.parquet --clip emoji --clip runs/emoji/clip-all-styles/model \
        --count 150 --out runs/emoji/decoys

Each is a square of 64 pixels that the CLIPs, in turn, guided towards a label of the train split, from random, sine,
fractal or gradient latents, with learning rates and numbers of steps that vary. The folder has a caption file beside
each picture; run again, the script goes on where it stopped.
"""

import argparse
from pathlib import Path

import numpy as np
from judging import emoji, labels_of

from codebrush import Codebrush
from codebrush.data.decoding.images import save_png
from codebrush.files import atomic_file

SIZE = 64  # pixels, as the scorer reads them
INITS = ("random", "sine", "fractal", "gradient")
RATES = (0.03, 0.05, 0.1, 0.2)
STEPS = (15, 30, 45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parquet")
    parser.add_argument("--pack", default="emoji", help="the pack whose VQGAN draws")
    parser.add_argument("--clip", action="append", required=True, help="pack or folder of a CLIP that guides")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    brush = Codebrush.from_pretrained(given.pack)
    labels = labels_of(emoji(given.parquet, "train"))
    given.out.mkdir(parents=True, exist_ok=True)
    for number in range(given.count):
        picture = given.out / f"{number:04d}.png"
        if picture.exists():
            continue
        rng = np.random.default_rng((0, number))
        label = labels[rng.integers(len(labels))]
        run = brush.guide(
            label,
            seed=number,
            size=f"{SIZE}x{SIZE}",
            steps=int(rng.choice(STEPS)),
            learning_rate=float(rng.choice(RATES)),
            init=str(rng.choice(INITS)),
            quantise=bool(rng.integers(2)),
            cutouts=8,
            show_every=0,
            other_clip=[given.clip[number % len(given.clip)]],
            own_clip_weight=0.0,
        )
        for _ in run:
            pass
        with atomic_file(picture.with_suffix(".txt")) as text:
            text.write_text(label)
        save_png(run.results[0].image, picture)
        print(number, label, f"{run.results[0].score:.3f}", flush=True)


if __name__ == "__main__":
    main()
