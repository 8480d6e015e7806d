"""Measures how well a captioner describes the test split, with each method of text decoding.

    python recipes/emoji/caption_figures.py emoji emoji.parquet
    python recipes/emoji/caption_figures.py emoji emoji.parquet --captioner runs/emoji/captioner-2/model --split val

CIDEr-D is against the pictures' labels, with document frequencies over the whole split; CLIP score is the mean cosine
by the pack's own CLIP; "best" keeps the caption of five with the highest CLIP score; "right" counts exact labels.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ask_scenes import open_reader
from judging import emoji

from codebrush.data.decoding.images import stack
from codebrush.evaluation.captions import cider
from codebrush.pack.pack import open_pack
from codebrush.understanding.captioning import Caption

BATCH = 32
WAYS = {"greedy": ("greedy", 1), "beam": ("beam", 1), "beam of 5, best": ("beam", 5), "5 samples, best": ("sample", 5)}


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("data", type=Path)
    parser.add_argument("--captioner", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    pack = open_pack(options.pack)
    reader = open_reader(pack, options.captioner)
    source = emoji(options.data, options.split)
    rows = [source.row(number) for number in range(len(source))][: options.limit]
    references = [[row["label"], f"{row['label']}, {row['style']} style"] for row in rows]
    print(f"| {len(rows)} pictures | CIDEr-D | CLIP score | right | seconds |\n|---|---|---|---|---|")
    for name, (method, n) in WAYS.items():
        began, written = time.monotonic(), list[Caption]()
        for start in range(0, len(rows), BATCH):
            images = [source.image(number) for number in range(start, min(start + BATCH, len(rows)))]
            found = reader.caption(stack(images, pack.clip.image_size), n, method)
            written += [captions[0] if captions else Caption("", 0.0, 0.0, 0.0) for captions in found]
        scores = cider([caption.text for caption in written], references)
        right = [caption.text in texts for caption, texts in zip(written, references, strict=True)]
        cells = f"{scores.mean():.2f} | {np.mean([caption.score for caption in written]):.3f} | {np.mean(right):.1%}"
        print(f"| {name} | {cells} | {time.monotonic() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
