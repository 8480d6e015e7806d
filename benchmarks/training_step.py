"""One training step of a VQGAN and of a CLIP, ours beside plain loops of the published algorithms, in alternation.

    pip install transformers
    python benchmarks/training_step.py [--rounds 3] [--threads 2] [--batch 8] [--clip-batch 32]

VQGAN: 64 channels and 4,096 codes, pictures of 64 and of 128 pixels, with the discriminator, without a perceptual
distance. The plain loop is taming's (Esser et al. 2021): PyTorch's own layers and memory layout, the pictures made once
for the autoencoder's step and once more for the discriminator's. CLIP: ViT-B/32 and captions of 10 tokens; the plain
loop is transformers' CLIPModel with its own loss and all 77 tokens of a text, as the published towers read them. Both
in float32 and with bf16 autocast; ours is the whole step of `Loop`, with its averaged weights. Random weights and
pictures. Prints the seconds of each round, the median ratios with their range, and the load.
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from alternation import alternated, flops_of
from published_models import (
    SIDE,
    PlainDecoder,
    PlainEncoder,
    clip_vit_b32,
    of_plain_layers,
    short_captions,
    transformers_clip_vit_b32,
)
from torch import Tensor, nn

from codebrush.models.discriminator import PatchGAN
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_base
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.tasks.clip import CLIPRecipe, CLIPTask
from codebrush.training.tasks.gan import adaptive_weight, discriminator_loss, generator_loss
from codebrush.training.tasks.vqgan import VQGANRecipe, VQGANTask

ROWS = 64


class RandomRows:
    """Stands for the rows of a source: pictures of noise, each of a group of its own, with a caption of its number."""

    def __init__(self, side: int):
        self.pixels = torch.randint(0, 256, (ROWS, 3, side, side), dtype=torch.uint8)
        self.groups = np.arange(ROWS)

    def __len__(self) -> int:
        return ROWS

    def images(self, rows: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(np.asarray(rows))]

    def sample(self, count: int) -> np.ndarray:
        return np.arange(min(count, ROWS))

    def captions(self, row: int) -> list[str]:
        return [str(row)]


def tokens_of(texts: list[str], on_long: str) -> Tensor:
    """Stands for a tokenizer: tokens (B, 77) of short captions, whatever the texts are."""
    return short_captions(len(texts))


def steps_of(task: Any, batch: int, folder: Path) -> Callable[[], object]:
    """A function that takes one step of the training loop."""
    loop = Loop(task, LoopConfig(steps=1_000_000, batch_size=batch, threads=torch.get_num_threads()), folder)
    return partial(loop.time_steps, 0, 1)


def our_vqgan(side: int, batch: int, folder: Path) -> Callable[[], object]:
    """A step of a VQGAN's training with its discriminator."""
    vqgan, data = VQGAN(vqgan_base(side)), RandomRows(side)
    recipe = VQGANRecipe(image_size=side, adversarial_from=0.0, perceptual=0.0, discriminator_channels=64)
    task: Any = VQGANTask(vqgan, recipe, data, steps=1_000_000)  # pyright: ignore[reportArgumentType]
    return steps_of(task, batch, folder)


def plain_vqgan(side: int, batch: int, bf16: bool) -> Callable[[], object]:
    """A step of taming's loop."""
    sizes = vqgan_base(side)
    encoder, decoder = of_plain_layers(PlainEncoder(sizes)), of_plain_layers(PlainDecoder(sizes))
    before = nn.Conv2d(sizes.latent_channels, sizes.code_dim, 1)
    after = nn.Conv2d(sizes.code_dim, sizes.latent_channels, 1)
    codebook, judge = nn.Embedding(sizes.codebook_size, sizes.code_dim), PatchGAN(64, 2)
    generator = torch.optim.Adam(nn.ModuleList([encoder, decoder, before, after, codebook]).parameters(), 1e-4)
    discriminator = torch.optim.Adam(judge.parameters(), 1e-4)
    data = RandomRows(side)

    def logits(images: Tensor) -> Tensor:
        return judge.main(images)

    def make(images: Tensor) -> tuple[Tensor, Tensor]:
        latent = before(encoder(images)).float()
        rows = latent.movedim(1, 3).flatten(0, 2)
        distance = rows.square().sum(1, keepdim=True) + codebook.weight.square().sum(1) - 2 * rows @ codebook.weight.T
        chosen = codebook(distance.argmin(1)).view(len(images), *latent.shape[2:], -1).movedim(3, 1)
        loss = 0.25 * F.mse_loss(chosen.detach(), latent) + F.mse_loss(chosen, latent.detach())
        return decoder(after(latent + (chosen - latent).detach())).float(), loss

    def step() -> None:
        images = data.images(np.arange(batch)).float() / 127.5 - 1
        autocast = partial(torch.autocast, "cpu", torch.bfloat16) if bf16 else contextlib.nullcontext
        with autocast():
            made, codebook_loss = make(images)
            loss, fooled = F.l1_loss(made, images), generator_loss(logits(made))
            weight = adaptive_weight(loss, fooled, decoder.conv_out.weight)
        generator.zero_grad()
        (loss + weight * fooled + codebook_loss).backward()
        generator.step()
        with autocast():
            made, _ = make(images)
            loss = discriminator_loss(logits(images), logits(made.detach()))
        discriminator.zero_grad()
        loss.backward()
        discriminator.step()

    return step


def our_clip(batch: int, folder: Path) -> Callable[[], object]:
    """A step of a CLIP's training."""
    recipe = CLIPRecipe(architecture="openai", image_size=SIDE, token_table=False, train_tokens=True)
    clip, data = clip_vit_b32(), RandomRows(SIDE)
    task: Any = CLIPTask(clip, recipe, data, tokens_of)  # pyright: ignore[reportArgumentType]
    return steps_of(task, batch, folder)


def plain_clip(batch: int, bf16: bool) -> Callable[[], object]:
    """A step of a plain loop around transformers' CLIP."""
    clip = transformers_clip_vit_b32().train()
    optimizer = torch.optim.AdamW(clip.parameters(), 1e-4)
    data, tokens = RandomRows(SIDE), short_captions(batch)

    def step() -> None:
        images = data.images(np.arange(batch)).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = clip(pixel_values=images, input_ids=tokens, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("rounds", 3), ("threads", 2), ("batch", 8), ("clip-batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"load {os.getloadavg()[0]:.1f}; {given.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        for side in (64, 128):
            ways = {
                "plain float32": plain_vqgan(side, given.batch, bf16=False),
                "plain bf16": plain_vqgan(side, given.batch, bf16=True),
                "codebrush": our_vqgan(side, given.batch, Path(folder) / f"vqgan-{side}"),
            }
            count = flops_of(ways["codebrush"])
            alternated(f"VQGAN training step, {given.batch} of {side} px", ways, given.rounds, count)
        ways = {
            "transformers float32": plain_clip(given.clip_batch, bf16=False),
            "transformers bf16": plain_clip(given.clip_batch, bf16=True),
            "codebrush": our_clip(given.clip_batch, Path(folder) / "clip"),
        }
        count = flops_of(ways["codebrush"])
        alternated(f"CLIP ViT-B/32 training step, {given.clip_batch} pairs", ways, given.rounds, count)


if __name__ == "__main__":
    main()
