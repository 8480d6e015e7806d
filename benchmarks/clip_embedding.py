"""Pictures and texts a second through CLIP ViT-B/32, ours in bfloat16, float32 and int8 beside transformers'.

    pip install transformers
    python benchmarks/clip_embedding.py [--rounds 5] [--threads 2] [--pictures 32] [--texts 64]

Random weights: speed does not depend on what they say. The texts are short captions of 10 tokens among 77: transformers
is given them cut to the longest, as its tokenizer pads them, ours in full, as it cuts them itself. Prints the seconds
of each round, the median ratios with their range, and the load.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from alternation import alternated, flops_of
from published_models import CAPTION, SIDE, clip_vit_b32, short_captions, transformers_clip_vit_b32
from torch import Tensor

from codebrush.models.precision import has_bf16


def peer(dtype: torch.dtype) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """How transformers embeds pictures and texts."""
    model = transformers_clip_vit_b32().eval().to(dtype)
    return (
        lambda images: model.get_image_features(pixel_values=images.to(dtype)),
        lambda tokens: model.get_text_features(input_ids=tokens[:, :CAPTION]),
    )


def ours(
    precision: Literal["auto", "float32", "int8"],
) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """How this package embeds pictures and texts."""
    clip = clip_vit_b32().eval().requires_grad_(False)
    clip.precision = precision
    return clip.encode_image, clip.encode_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("rounds", 5), ("threads", 2), ("pictures", 32), ("texts", 64)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    models = {
        "transformers float32": peer(torch.float32),
        "transformers bf16": peer(torch.bfloat16),
        "codebrush float32": ours("float32"),
        "codebrush": ours("auto"),
        "codebrush int8": ours("int8"),
    }
    images, tokens = torch.rand(given.pictures, 3, SIDE, SIDE), short_captions(given.texts)
    speed = "fast" if has_bf16(images.device) else "slow"
    print(f"load {os.getloadavg()[0]:.1f}; {given.threads} threads; bfloat16 is {speed} here")
    with torch.inference_mode():
        for title, given_rows, place in (("pictures", images, 0), ("texts", tokens, 1)):
            ways = {name: partial(model[place], given_rows) for name, model in models.items()}
            count = flops_of(ways["codebrush float32"])
            alternated(f"CLIP ViT-B/32, {len(given_rows)} {title}", ways, given.rounds, count)


if __name__ == "__main__":
    main()
