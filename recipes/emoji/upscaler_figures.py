"""Measures an upscaler, of a pack or of a run, on the emoji of the test split, compared with bicubic.

    python recipes/emoji/upscaler_figures.py emoji emoji.parquet
    python recipes/emoji/upscaler_figures.py emoji emoji.parquet --upscaler runs/emoji/upscaler/model --split val
    python recipes/emoji/upscaler_figures.py emoji large.parquet --size 256      # of large_drawings.py: as packs draw

Each picture is reduced by antialiased bicubic and rounded to 8 bits, as a file is; "drawn" has also passed through the
pack's VQGAN. PSNR (mean over the pictures, in dB) and SSIM are those of torchmetrics; the perceptual distance is that
of the pack's CLIP, on tiles of the size that it reads, so that no detail is lost by reducing them.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from codebrush.data.decoding.images import resize_square, stack, to_pil
from codebrush.data.sources.captioned_images import open_source
from codebrush.generation.editing.upscaling import upscale_picture
from codebrush.models.perceptual import CLIPPerceptual
from codebrush.models.upscaler import Upscaler, reduce
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import open_pack

BATCH = 32
EXACT = 100.0  # dB of a picture without any error


def bicubic(picture: Image.Image, size: int) -> Image.Image:
    """The picture enlarged to a square by Pillow."""
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def drawn(vqgan: VQGAN, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) through the VQGAN's codes and back."""
    quantised, _ = vqgan.quantize(vqgan.encode(images))
    return vqgan.decode(quantised)


def squares(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, S, S) -> their tiles (B n, 3, size, size)."""
    parts = images.unfold(2, size, size).unfold(3, size, size)  # (B, 3, rows, columns, size, size)
    return parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def measure(made: Tensor, true: Tensor, judge: CLIPPerceptual) -> list[float]:
    """Sums of PSNR, SSIM and perceptual distance over a batch."""
    psnr = peak_signal_noise_ratio(made, true, data_range=1.0, dim=(1, 2, 3), reduction="none").clamp(max=EXACT)
    ssim = structural_similarity_index_measure(made, true, data_range=1.0, reduction="none")
    size = judge.clip.image_size
    apart = judge(squares(made, size), squares(true, size)).mean() * len(true)
    return [float(psnr.sum()), float(torch.as_tensor(ssim).sum()), float(apart)]


@torch.no_grad()
def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("data", type=Path)
    parser.add_argument("--upscaler", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", type=int, default=128, help="of the large pictures, in pixels")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    pack = open_pack(options.pack)
    size, half, quarter = options.size, options.size // 2, options.size // 4
    model = pack.upscaler if options.upscaler is None else Upscaler.from_pretrained(options.upscaler)
    judge = CLIPPerceptual(pack.clip)
    where = ["skin_tone is null"]
    source = open_source(options.data, split=options.split, where=where, captions=["{label}"], limit=options.limit)
    pictures = [resize_square(source.image(row), size) for row in range(len(source))]
    print(f"| {len(pictures)} pictures | PSNR | SSIM | perceptual | seconds |\n|---|---|---|---|---|")
    kinds = ((f"{half}", 2, False), (f"{quarter}", 4, False), (f"{half}, drawn,", 2, True))
    for name, scale, through in kinds:
        ways: dict[str, Callable[[Image.Image], Image.Image]] = {
            "bicubic": lambda picture: bicubic(picture, size),
            "upscaler": lambda picture, scale=scale: upscale_picture(model, picture, scale),
        }
        for way, to_large in ways.items():
            began, sums = time.monotonic(), torch.zeros(3)
            for start in range(0, len(pictures), BATCH):
                true = stack(pictures[start : start + BATCH], size)
                small = reduce(true, scale)
                small = [to_pil(image) for image in (drawn(pack.vqgan, small) if through else small)]
                sums += torch.tensor(measure(stack([to_large(each) for each in small], size), true, judge))
            psnr, ssim, apart = (sums / len(pictures)).tolist()
            cells = f"{psnr:.2f} | {ssim:.4f} | {apart:.4f} | {time.monotonic() - began:.0f}"
            print(f"| {name} to {size}, {way} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
