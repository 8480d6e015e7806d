"""Measures whether latents that are not exact codes should be snapped to codes before they are decoded.

    python recipes/emoji/latent_noise.py emoji drawings.parquet [--minutes 5] [--flow FOLDER --clip FOLDER]

Pictures of the val split go through the encoder; noise is added to their latents, in shares of their deviation, and
they are decoded as they are and from the nearest codes. Prints the PSNR of both and how many codes the noise has
changed. With `--minutes` the decoder is then fine-tuned for so long on noisy latents of the train split, from none to
NOISIEST, and measured again. `--flow` is the folder of a flow transformer, and `--clip` that of
the CLIP that it reads: prints how far from the nearest code its drawings of the val split's labels end, beside the
encoder's latents.
"""

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from judging import emoji, labels_of
from torch import Tensor

from codebrush import Codebrush
from codebrush.data.decoding.images import stack
from codebrush.generation.options import FlowSettings
from codebrush.generation.sampling.flow import draw_latents, picture_noise
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import encode_condition, open_clip
from codebrush.training.tasks.psnr import psnr

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
NOISIEST = 0.7
BATCH, RATE, DRAWN, TRAINED = 8, 2e-4, 8, 1024


def pictures_of(parquet: str, split: str, count: int, size: int) -> Tensor:
    """Evenly spaced pictures of a split, (count, 3, size, size) in [0, 1]."""
    rows = emoji(parquet, split)
    return torch.cat(
        [stack([rows.image(row)], size) for row in range(0, len(rows), max(1, len(rows) // count))][:count]
    )


def unit(latent: Tensor) -> Tensor:
    """Latents as the decoder reads codes of an L2-normalised codebook."""
    return F.normalize(latent, dim=1)


@torch.no_grad()
def encoded(vqgan: VQGAN, pictures: Tensor) -> Tensor:
    """Latents (N, d, h, w) of pictures."""
    return unit(torch.cat([vqgan.encode(part) for part in pictures.split(BATCH)]))


@torch.no_grad()
def table(vqgan: VQGAN, pictures: Tensor, latents: Tensor) -> None:
    """Print the PSNR of pictures through noisy latents, as they are and snapped."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)) * latents.std()
    exact = vqgan.quantize(latents)[1]
    for level in LEVELS:
        noisy = unit(latents + level * noise)
        snapped, codes = vqgan.quantize(noisy)
        found = []
        for given in (noisy, snapped):
            decoded = torch.cat([vqgan.decode(part) for part in given.split(BATCH)]).clamp(0, 1)
            found.append(float(psnr(decoded, pictures, each=True)))
        changed = float((codes != exact).float().mean())
        print(f"noise {level:.1f}: as it is {found[0]:.2f} dB, snapped {found[1]:.2f} dB, {changed:.0%} other codes")


def tuned(vqgan: VQGAN, pictures: Tensor, minutes: float) -> VQGAN:
    """The VQGAN with its decoder fine-tuned on noisy latents of pictures."""
    latents, result = encoded(vqgan, pictures), copy.deepcopy(vqgan)
    parameters = [*result.post_quant_conv.parameters(), *result.decoder.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, RATE)
    begun, steps, deviation = time.monotonic(), 0, latents.std()
    while (left := 1 - (time.monotonic() - begun) / (60 * minutes)) > 0:
        optimizer.param_groups[0]["lr"] = RATE * left
        rows = torch.randint(len(latents), (BATCH,))
        level = torch.rand(BATCH, 1, 1, 1) * NOISIEST
        decoded = result.decode(unit(latents[rows] + level * deviation * torch.randn_like(latents[rows])))
        loss = F.l1_loss(decoded, pictures[rows]) + F.mse_loss(decoded, pictures[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    print(f"decoder fine-tuned for {minutes:g} minutes, {steps} steps of {BATCH} of {len(pictures)} pictures:")
    return result


@torch.no_grad()
def distances(vqgan: VQGAN, folder: str, clip: str, prompts: list[str], latents: Tensor) -> None:
    """Print how far from the nearest code latents of the encoder are, and those that a flow ends at."""
    flow = FlowTransformer.from_pretrained(folder).eval()
    condition = encode_condition(*open_clip(clip), prompts[:DRAWN], flow.config)
    noise = picture_noise(0, range(DRAWN), (flow.config.latent_channels, *flow.config.grid))
    drawn = unit(draw_latents(flow, condition, noise, FlowSettings(25, "euler"), 3.0))
    for name, given in (("encoder", latents), ("flow", drawn)):
        apart = (given - vqgan.quantize(given)[0]).square().mean().sqrt() / latents.std()
        print(f"{name}: {float(apart):.3f} deviations from the nearest code")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--flow", default="")
    parser.add_argument("--clip", default="emoji", help="folder of the CLIP that the flow reads")
    given = parser.parse_args()
    torch.manual_seed(0)
    brush = Codebrush.from_pretrained(given.pack, device="cpu")
    pictures = pictures_of(given.parquet, "val", given.pictures, brush.pack.image_size)
    latents = encoded(brush.vqgan, pictures)
    if given.flow:
        distances(brush.vqgan, given.flow, given.clip, labels_of(emoji(given.parquet, "val")), latents)
    table(brush.vqgan, pictures, latents)
    if given.minutes:
        train = pictures_of(given.parquet, "train", TRAINED, brush.pack.image_size)
        table(tuned(brush.vqgan, train, given.minutes), pictures, latents)


if __name__ == "__main__":
    main()
