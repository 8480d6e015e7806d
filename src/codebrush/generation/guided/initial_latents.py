"""Where guidance begins, out of noise, of a file or of a drawing: latents (B, d, h, w)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codebrush.data.images import decode_image, to_tensor
from codebrush.errors import ImageError, UsageError
from codebrush.generation.guided.guide_options import STARTS, GuideOptions
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.vqgan import VQGAN

SINE_SCALE = 0.5  # of the normal numbers whose sine is taken, as in the classic notebook
Sampler = Callable[[Sequence[int]], Tensor]


def start_latent(
    options: GuideOptions,
    vqgan: VQGAN,
    pictures: Sequence[int],
    size: tuple[int, int],
    seed: int,
    sample: Sampler | None = None,
) -> Tensor:
    """Latents (B, d, h, w), before quantisation, for pictures of `size` (H, W) as `options.init` says.

    Picture i depends on the seed and i alone; of a file with several latents it has the i-th. `sample` draws pictures
    (B, 3, S, S) in [0, 1] for the start "sample".
    Raises UsageError where there is no such start, ImageError where a file cannot be read or does not fit.
    """
    grid, device = vqgan.code_grid(size), vqgan.last_layer.device
    streams = [stream(seed, index, Purpose.START) for index in pictures]
    if options.init == "random":
        codes = np.stack([rng.integers(vqgan.codebook_size, size=grid) for rng in streams])
        return vqgan.quantizer.look_up(torch.from_numpy(codes).to(device)).detach()
    if options.init == "sine":
        shape = (vqgan.config.code_dim, *grid)
        normal = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in streams])
        return torch.sin(SINE_SCALE * torch.from_numpy(normal)).to(device)
    if options.init == "sample":
        if sample is None:
            raise UsageError("init sample needs a pack with a code transformer")
        return encoded(vqgan, F.interpolate(sample(pictures), size, mode="bicubic", antialias=True).clamp(0, 1))
    if options.init in STARTS:
        draw = fractal_noise if options.init == "fractal" else colour_gradient
        return encoded(vqgan, torch.stack([draw(size, rng) for rng in streams]).to(device))
    latents = file_latents(options.init, vqgan, size)
    if len(latents) == 1:
        return latents.expand(len(pictures), -1, -1, -1)
    if max(pictures) >= len(latents):
        raise ImageError(f"{options.init}: holds {len(latents)} latents, and picture {max(pictures)} has none")
    return latents[list(pictures)]


@torch.no_grad()
def encoded(vqgan: VQGAN, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> latents that guidance can begin from: of a Gumbel quantiser, its codes'."""
    latent = vqgan.encode(images)
    return vqgan.quantize(latent)[0] if vqgan.config.quantizer == "gumbel" else latent


def fractal_noise(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A picture (3, H, W) in [0, 1] of noise on all scales, each octave half as strong as the one twice as coarse."""
    height, width = size
    side = max(size)  # drawn as a square and cut, so that the noise is as fine along both axes
    total, strength, cells = torch.zeros(1, 3, side, side), 1.0, 2
    while cells <= 2 * side:
        octave = torch.from_numpy(rng.standard_normal((1, 3, cells, cells), dtype=np.float32))
        total += strength * F.interpolate(octave, (side, side), mode="bicubic", align_corners=False)
        strength, cells = strength / 2, cells * 2
    top, left = (side - height) // 2, (side - width) // 2
    return torch.sigmoid(1.5 * total[0, :, top : top + height, left : left + width])


def colour_gradient(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A picture (3, H, W) in [0, 1] that blends smoothly between four random colours in its corners."""
    corners = torch.from_numpy(rng.random((1, 3, 2, 2), dtype=np.float32))
    return F.interpolate(corners, size, mode="bilinear", align_corners=True)[0]


def cover(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The centre of `image` as (3, H, W) in [0, 1]: scaled until it covers `size` (H, W), and what is over cut off."""
    height, width = size
    scale = min(image.width / width, image.height / height)  # of the picture's pixels, for one of ours
    across, down = min(width * scale, image.width), min(height * scale, image.height)  # rounding may go beyond
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return to_tensor(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def file_latents(name: str, vqgan: VQGAN, size: tuple[int, int]) -> Tensor:
    """The latents (n, d, h, w) of a picture, or of a .safetensors file that holds latents or codes."""
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"init must be one of {', '.join(STARTS)} or a file, and there is no file {name}")
    device = vqgan.last_layer.device
    if path.suffix.lower() != ".safetensors":
        return encoded(vqgan, cover(decode_image(path), size)[None].to(device))
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ImageError(f"{name} is no readable .safetensors file ({' '.join(str(error).split())[:100]})") from error
    if "latent" in tensors:
        latents = _checked_latents(name, tensors["latent"], vqgan.config.code_dim)
    elif "codes" in tensors:
        codes = _checked_codes(name, tensors["codes"], vqgan.codebook_size)
        latents = vqgan.quantizer.look_up(codes.to(device)).detach()
    else:
        raise ImageError(f"{name}: holds neither a latent nor codes, but {', '.join(sorted(tensors)) or 'nothing'}")
    return F.interpolate(latents.to(device), vqgan.code_grid(size), mode="bilinear")


def _checked_latents(name: str, stored: Tensor, code_dim: int) -> Tensor:
    """A stored (d, h, w) or (n, d, h, w) as finite float32 (n, d, h, w)."""
    latents = stored[None] if stored.ndim == 3 else stored
    if latents.ndim != 4 or latents.shape[1] != code_dim or not latents.numel():
        raise ImageError(f"{name}: its latent has the shape {tuple(stored.shape)}, and must have ({code_dim}, h, w)")
    if not latents.is_floating_point() or not latents.isfinite().all():
        raise ImageError(f"{name}: its latent is not all finite floating-point numbers")
    return latents.float()


def _checked_codes(name: str, stored: Tensor, codebook_size: int) -> Tensor:
    """A stored (h, w) or (n, h, w) as int64 (n, h, w), every one of them a code."""
    codes = stored[None] if stored.ndim == 2 else stored
    if codes.ndim != 3 or codes.is_floating_point() or codes.is_complex() or not codes.numel():
        raise ImageError(f"{name}: its codes have the shape {tuple(stored.shape)}, and must be whole numbers (h, w)")
    codes = codes.long()
    if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
        raise ImageError(f"{name}: its codes are not all from 0 to {codebook_size - 1}")
    return codes
