"""Where guidance begins: latents of random codes, of noise, of a colour gradient, of a sampled picture or of a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import ImageError, UsageError
from codebrush.generation.guided.guide_options import INITS, GuideOptions
from codebrush.generation.latent_files import encoded, file_latents
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.vqgan import VQGAN

SINE_SCALE = 0.5  # of the normal numbers whose sine is taken, as in the classic notebook
Sampler = Callable[[Sequence[int]], Tensor]


def initial_latents(
    options: GuideOptions,
    vqgan: VQGAN,
    pictures: Sequence[int],
    size: tuple[int, int],
    seed: int,
    sample: Sampler | None = None,
) -> Tensor:
    """Initial latents (B, d, h, w), before quantisation, for pictures of `size` (H, W) as `options.init` says.

    Picture i depends on the seed and i alone; of a file with several latents it gets the i-th. `sample` draws pictures
    (B, 3, S, S) in [0, 1] for the init "sample".

    Raises:
        UsageError: if `options.init` is neither an init nor a file, or is "sample" without a `sample`.
        ImageError: if a file cannot be read or does not fit the VQGAN.
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
    if options.init in INITS:
        draw = fractal_noise if options.init == "fractal" else colour_gradient
        return encoded(vqgan, torch.stack([draw(size, rng) for rng in streams]).to(device))
    check_init(options.init)
    latents = file_latents(options.init, vqgan, size)
    if len(latents) == 1:
        return latents.expand(len(pictures), -1, -1, -1)
    if max(pictures) >= len(latents):
        raise ImageError(f"{options.init}: holds {len(latents)} latents, and picture {max(pictures)} has none")
    return latents[list(pictures)]


def check_init(init: str) -> None:
    """Raise a UsageError if `init` is neither one of `INITS` nor a file."""
    if init not in INITS and not Path(init).is_file():
        raise UsageError(f"init must be one of {', '.join(INITS)} or a file, and there is no file {init}")


def fractal_noise(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A picture (3, H, W) in [0, 1] of noise on all scales, each octave half as strong as the one twice as coarse."""
    height, width = size
    side = max(size)  # drawn as a square and cropped, so that the noise is as fine along both axes
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
