"""The film of a guided run: its stored latents decoded one after another, with interpolated ones in between."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import to_pil
from codebrush.generation.latent_interpolation import interpolate_latents

FILM_SECONDS = 10  # that the film of a picture lasts at least, if nothing else is asked for


def film_frames(
    latents: Sequence[Tensor],
    between: int | None,
    fps: float,
    decode: Callable[[Tensor], Tensor],
    size: tuple[int, int],
) -> Iterator[Image.Image]:
    """Frames of `size` (width, height) from a picture's latents (d, h, w), with `between` more from each to the next.

    `between` None is as many as `FILM_SECONDS` take at `fps` frames a second. `decode` maps (1, d, h, w) to
    (1, 3, H, W) in [0, 1]. Nothing is interpolated between two stages of growth, whose latents differ in size.
    """
    if between is None:
        between = max(0, math.ceil((FILM_SECONDS * fps - 1) / max(1, len(latents) - 1)) - 1)
    for number, latent in enumerate(latents):
        pair = latents[number : number + 2]
        same_size = len(pair) == 2 and pair[0].shape == pair[1].shape
        part = interpolate_latents(torch.stack(list(pair)), between)[:-1] if same_size else latent[None]
        for frame in part:
            image = to_pil(decode(frame[None])[0])
            yield image if image.size == size else image.resize(size)
