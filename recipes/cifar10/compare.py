"""Compares fine-tuned CLIPs: what each has learned of small photographs and what it has forgotten of emoji.

    python recipes/cifar10/compare.py emoji runs/cifar10/full runs/cifar10/locked-image \
        --photographs cifar10-mini.parquet --emoji emoji.parquet

Prints a table of zero-shot top-1 on the test split of the photographs among their ten classes ("a photo of a ..."), and
of zero-shot top-1 and text-to-image recall@1 on the val split of the emoji without skin tones. A CLIP is a pack, a run
or a folder; A:B:0.5 is a blend of two in which B has that weight (WiSE-FT).
"""

import argparse
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from codebrush.data.decoding.images import stack
from codebrush.data.sources.captioned_images import open_source
from codebrush.evaluation.alignment import cross_retrieval, zero_shot
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.blending import model_place
from codebrush.training.fine_tuning import blend

BATCH = 100


def open_one(name: str) -> tuple[CLIP, Tokenizer]:
    """A CLIP by name, or a blend of two."""
    first, *rest = name.split(":")
    clip, tokenizer = open_clip(model_place(first))
    if rest:
        other, share = rest
        weights = open_clip(model_place(other))[0].state_dict()
        clip.load_state_dict(blend(clip.state_dict(), weights, float(share)))
    return clip, tokenizer


@cache
def pictures(file: str, split: str, caption: str, size: int) -> tuple[list[str], Tensor]:
    """Captions and uint8 pictures (N, 3, size, size) of a split, without skin tones."""
    where = ["skin_tone is null"] if caption == "{label}" else []
    source = open_source(file, split=split, where=where, captions=[caption])
    names = [source.captions(row)[0] for row in range(len(source))]
    images = [stack([source.image(row)], size) for row in range(len(source))]
    return names, (torch.cat(images) * 255).round().byte()


@torch.no_grad()
def measure(clip: CLIP, tokenizer: Tokenizer, names: list[str], images: Tensor) -> dict[str, float]:
    """Zero-shot accuracy among the distinct names, and recall of pictures from them."""
    labels = sorted(set(names))
    seen = torch.cat([clip.encode_image(part.float() / 255) for part in images.split(BATCH)])
    texts = torch.cat([clip.encode_text(tokenizer(labels[at : at + BATCH])) for at in range(0, len(labels), BATCH)])
    owners = [[labels.index(name)] for name in names]
    return zero_shot(seen, labels, texts, names) | cross_retrieval(seen, texts, owners)["text_to_image"]


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--photographs", required=True, type=Path)
    parser.add_argument("--emoji", required=True, type=Path)
    options = parser.parse_args()
    print("| CLIP | photographs top-1 | emoji top-1 | emoji recall@1 |\n|---|---|---|---|")
    for name in options.clips:
        clip, tokenizer = open_one(name)
        photographs = pictures(str(options.photographs), "test", "a photo of a {label}", clip.image_size)
        emoji = pictures(str(options.emoji), "val", "{label}", clip.image_size)
        there, here = measure(clip, tokenizer, *photographs), measure(clip, tokenizer, *emoji)
        figures = f"{there['top1']:.1%} | {here['top1']:.1%} | {here['recall_at_1']:.1%}"
        print(f"| {name} | {figures} |", flush=True)
    print(f"\n{there['pictures']:.0f} photographs of {there['labels']:.0f} classes; ", end="")
    print(f"{here['pictures']:.0f} emoji of {here['labels']:.0f} labels")


if __name__ == "__main__":
    main()
