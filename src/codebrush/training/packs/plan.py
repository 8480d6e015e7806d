"""A time budget and a machine -> the sizes and steps of a stage, from a few timed steps on this machine."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codebrush.training.stages import Recipe
from codebrush.training.tasks.captioner import CaptionerRecipe
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.prior import PriorRecipe
from codebrush.training.tasks.upscaler import UpscalerRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe

SHARES = {  # of the whole budget
    "clip": 0.21, "vqgan": 0.33, "transformer": 0.28, "prior": 0.02, "captioner": 0.11, "upscaler": 0.05,
}  # fmt: skip
WARM_STEPS, TIMED_STEPS = 2, 3
GRID = 8  # codes along a side, at least; pictures are multiples of it


@dataclass(frozen=True)
class Size:
    """A candidate: its recipe, its batch, and how many pictures it must see to be worth its size."""

    name: str
    recipe: Recipe
    batch_size: int
    examples: int


def sizes(stage: str, image_size: int) -> Sequence[Size]:
    """The candidates of a stage, smallest first, for square pictures of `image_size` pixels."""
    levels = min(3, max(1, int(math.log2(image_size // GRID))))  # of halving: factor 8 at most
    if stage == "clip":
        return [
            Size("small", _clip(image_size, 16, 128, 2, 128), 128, 20_000),
            Size("medium", _clip(image_size, 32, 256, 4, 256), 256, 100_000),
            Size("large", _clip(image_size, 64, 384, 6, 384), 512, 1_000_000),
        ]
    if stage == "vqgan":
        return [
            Size("small", _vqgan(image_size, levels, 16, 256, (1, 2, 2, 4)), 16, 10_000),
            Size("medium", _vqgan(image_size, levels, 32, 1024, (1, 2, 2, 4)), 32, 60_000),
            Size("large", _vqgan(image_size, levels, 64, 4096, (1, 2, 4, 4)), 32, 600_000),
        ]
    if stage == "captioner":
        return [
            Size("small", CaptionerRecipe(width=96, layers=2, vocab_size=1024, learning_rate=2e-3), 16, 20_000),
            Size("medium", CaptionerRecipe(width=192, layers=4), 32, 100_000),
            Size("large", CaptionerRecipe(width=384, layers=6, vocab_size=4096, learning_rate=6e-4), 64, 1_000_000),
        ]
    if stage == "prior":
        return [
            Size("small", PriorRecipe(width=256), 64, 10_000),
            Size("large", PriorRecipe(width=1024), 256, 1_000_000),
        ]
    if stage == "upscaler":
        target = 2 * image_size
        return [
            Size("small", UpscalerRecipe(width=32, blocks=4, target_size=target, learning_rate=2e-3), 8, 10_000),
            Size("medium", UpscalerRecipe(target_size=target), 16, 100_000),
            Size("large", UpscalerRecipe(width=64, blocks=16, target_size=target, learning_rate=4e-4), 32, 1_000_000),
        ]
    block = 2 if (image_size >> levels) >= 2 * GRID else 1
    return [
        Size("small", _transformer(128, 4, 4, 2e-3, block), 32, 20_000),
        Size("medium", _transformer(256, 8, 4, 1e-3, block), 64, 150_000),
        Size("large", _transformer(512, 12, 8, 6e-4, block), 128, 1_500_000),
    ]


def _clip(image_size: int, channels: int, text_width: int, text_layers: int, embed_dim: int) -> CLIPRecipe:
    patches = image_size < 64 or image_size % 32 > 0  # the resnet's stride of 32 leaves too little of a small picture
    return CLIPRecipe(
        image_size=image_size,
        image="vit" if patches else "resnet",
        patch_size=image_size // GRID,
        width=channels * 8 if patches else channels,
        heads=4,
        layers=4,
        text_width=text_width,
        text_layers=text_layers,
        embed_dim=embed_dim,
    )


def _transformer(width: int, layers: int, heads: int, learning_rate: float, block: int) -> TransformerRecipe:
    """One that also varies pictures and fills holes."""
    return TransformerRecipe(
        width=width,
        layers=layers,
        heads=heads,
        block=block,
        learning_rate=learning_rate,
        image_share=0.15,
        hole_share=0.15,
    )


def _vqgan(
    image_size: int, levels: int, channels: int, codebook_size: int, multipliers: tuple[int, ...]
) -> VQGANRecipe:
    return VQGANRecipe(
        image_size=image_size,
        channels=channels,
        channel_multipliers=multipliers[-(levels + 1) :],
        latent_channels=2 * channels,
        codebook_size=codebook_size,
    )


def choose(candidates: Sequence[Size], seconds: float, time_steps: Callable[[Size], float]) -> tuple[Size, int, float]:
    """The largest size that sees its pictures within `seconds`, its steps, and its measured seconds a step.

    `time_steps` trains a throw-away network of a size for a few steps and says the seconds of one; the time it
    takes is taken from `seconds`. A larger size is only tried when the one before had time to spare.
    """
    best: tuple[Size, int, float] | None = None
    started = time.monotonic()
    for size in candidates:
        per_step = time_steps(size)
        left = max(0.0, seconds - (time.monotonic() - started))
        steps = max(1, int(left / per_step))
        if best is not None and steps * size.batch_size < size.examples:
            best = best[0], max(1, int(left / best[2])), best[2]
            break
        best = size, steps, per_step
        if steps * size.batch_size < 2 * size.examples:
            break
    assert best is not None
    return best
