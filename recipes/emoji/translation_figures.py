"""Measures how close a pack's translations of unseen concepts come to the true pictures in the other style.

    python recipes/emoji/translation_figures.py emoji emoji.parquet --judge runs/emoji/judge/model --out FOLDER

For comparison it also measures an unchanged copy of the source, the baseline, and the true picture through the VQGAN's
codes, the upper bound. Figures at the pack's size: PSNR (mean over the pictures, in dB), the perceptual distance by the
pack's CLIP, and the cosine of image embeddings by the pack's own and a second CLIP.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from judging import emoji
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import resize_square, save_png, stack
from codebrush.models.clip import CLIP
from codebrush.models.perceptual import CLIPPerceptual
from codebrush.pack.pack import open_clip

SHOWN = 12
EXACT = 100.0  # dB of a picture without any error


@torch.no_grad()
def measure(made: Tensor, true: Tensor, judges: list[CLIP]) -> list[float]:
    """PSNR, perceptual distance and the cosine by each CLIP of one picture (1, 3, S, S) and the true one."""
    psnr = peak_signal_noise_ratio(made, true, data_range=1.0).clamp(max=EXACT)
    apart = CLIPPerceptual(judges[0])(made, true).mean()
    cosines = [float((judge.encode_image(made) * judge.encode_image(true)).sum()) for judge in judges]
    return [float(psnr), float(apart), *cosines]


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("data", type=Path)
    parser.add_argument("--judge", required=True, help="folder of the second CLIP")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--by", choices=("translator", "codes", "flow"))
    parser.add_argument("--rerank", type=int)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    brush = Codebrush.from_pretrained(options.pack)
    judges, size = [brush.clip, open_clip(options.judge)[0]], brush.pack.image_size
    source = emoji(options.data, options.split)
    drawn_in: dict[str, dict[str, int]] = defaultdict(dict)
    for row in range(len(source)):
        cells = source.row(row)
        drawn_in[cells["concept"]][cells["style"]] = row
    known = brush.pack.translator.config.styles if brush.pack.has("translator") else ()
    styles = known or brush.pack.info["translation"]["styles"]
    pairs = [
        (rows[one], rows[other], other)
        for rows in drawn_in.values()
        for one in rows
        for other in rows
        if one != other and other in styles
    ]
    chosen = np.random.default_rng(0).choice(len(pairs), min(options.pairs, len(pairs)), replace=False)
    given = {name: getattr(options, name) for name in ("rerank", "cfg", "temperature")}
    found: dict[str, list[list[float]]] = defaultdict(list)
    shown: list[tuple[Image.Image, str]] = []
    for number, index in enumerate(chosen.tolist()):
        one, other, style = pairs[index]
        theirs, truth = (resize_square(source.image(row), size) for row in (one, other))
        (result,) = brush.translate(theirs, style, n=1, by=options.by, **given)
        pictures = {"copy": theirs, "translated": result.image, "true codes": brush.reconstruct([truth])[0]}
        for way, picture in pictures.items():
            found[way].append(measure(stack([picture], size), stack([truth], size), judges))
        if number < SHOWN:
            label = source.captions(one)[0]
            shown += [(theirs, f"{label}: given"), (result.image, f"to {style}"), (truth, "true")]
    print(f"| {len(chosen)} pairs | PSNR | perceptual | own CLIP | second CLIP |\n|---|---|---|---|---|")
    for way, rows in found.items():
        table = np.array(rows)
        mean, spread = table.mean(0), table.std(0) / len(table) ** 0.5
        cells = [f"{m:.{d}f} ± {s:.{d}f}" for m, s, d in zip(mean, spread, (2, 4, 3, 3), strict=True)]
        print(f"| {way} | {' | '.join(cells)} |")
    if options.out is not None:
        save_png(contact_sheet([i for i, _ in shown], [t for _, t in shown], 6), options.out / "translations.png")


if __name__ == "__main__":
    main()
