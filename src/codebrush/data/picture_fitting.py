"""Fits pictures of any shape to what a CLIP reads, by a rule that can be chosen, and embeds them.

A CLIP reads one square (or another fixed shape). Of a panorama, its own preprocessing mostly shows it the middle alone.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import decode_image, to_tensor
from codebrush.data.preprocess import clip_resize, pixels_for
from codebrush.errors import UsageError
from codebrush.models.clip import CLIP

Fit = Literal["crop", "pad", "squeeze", "tiles"]
FITS: tuple[Fit, ...] = get_args(Fit)
WHITE = (255, 255, 255)
MAX_TILES = 8  # of a picture: side by side they cover one that is eight times as wide as high
BATCH = 32  # views encoded together


def own_fit(clip: CLIP) -> Fit:
    """How the CLIP's own preprocessing fits pictures: SigLIP's squeezes them, the others crop."""
    return "squeeze" if clip.config.resize_mode == "squeeze" else "crop"


def views_for(clip: CLIP, image: bytes | str | Path | Image.Image, fit: Fit | None = None) -> Tensor:
    """What the CLIP sees of a picture, as 8-bit pixels without loss: (T, 3, H, W) uint8, T = 1 except for "tiles".

    - "crop": the middle.
    - "pad": the whole, between bars. They are white for CLIPs that see transparency over white, else of the mean colour
      of the CLIP's training pictures, which is 0 once it is normalised (as LLaVA pads).
    - "squeeze": the whole, distorted.
    - "tiles": crops along the longer side, from end to end. They overlap by about half; if they would be more than
      `MAX_TILES` they overlap less, and in pictures that are longer still each tile is squeezed.
    - None: as the CLIP was trained (see `own_fit`).

    Raises:
        UsageError: if `fit` is none of these.
        ImageError: if the picture cannot be read.
        PackError: see `pixels_for`.
    """
    own = own_fit(clip)
    if fit not in (None, *FITS):
        raise UsageError(f"fit must be one of {', '.join(FITS)}, not {fit}")
    if fit in (None, own):
        return _eight_bit(pixels_for(clip, [image]))
    shape, is_plain = clip.image_shape, clip.config.resize_mode == "plain"
    picture = decode_image(image, keep_mode=not is_plain, wanted=max(shape))
    if fit == "pad":
        ground = WHITE if is_plain else _colour(clip.config.image_mean)
        fitted = [padded(picture, shape, ground)]
    elif fit == "tiles":
        parts, is_own = tiles(picture, shape)
        if is_own:
            return _eight_bit(pixels_for(clip, parts))
        fitted = [clip_resize(part, shape, crop=False) for part in parts]
    else:
        fitted = [clip_resize(picture.convert("RGB"), shape, crop=fit == "crop")]
    return _eight_bit(torch.stack([to_tensor(each) for each in fitted]))


@torch.no_grad()
def embed_views(clip: CLIP, views: Sequence[Tensor]) -> Tensor:
    """The views (T, 3, H, W) uint8 of each of B pictures -> unit vectors (B, E) float32 on the CLIP's device.

    A picture with several views has the normalised mean of their embeddings.
    """
    if not views:
        return torch.zeros(0, clip.embed_dim)
    device, pixels, vectors = clip.log_scale.device, torch.cat(list(views)), []
    for start in range(0, len(pixels), BATCH):
        vectors.append(clip.encode_image(unit_range(pixels[start : start + BATCH].to(device))).float())
    parts = torch.cat(vectors).split([len(each) for each in views])  # B times (T, E)
    return torch.stack([part[0] if len(part) == 1 else F.normalize(part.mean(0), dim=0) for part in parts])


def unit_range(pixels: Tensor) -> Tensor:
    """8-bit pixels as float32 in [0, 1]."""
    return pixels.float().div_(255)


def padded(picture: Image.Image, shape: tuple[int, int], ground: tuple[int, int, int]) -> Image.Image:
    """The whole picture, scaled to fit into `shape` (H, W), in the middle of `ground`."""
    height, width = shape
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    canvas = Image.new("RGB", (width, height), ground)
    scaled = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    canvas.paste(scaled, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def tiles(picture: Image.Image, shape: tuple[int, int]) -> tuple[list[Image.Image], bool]:
    """Parts of the picture along its longer side, compared with `shape` (H, W), which together cover it; and whether
    they are of that shape. Pictures of that shape are a single part.
    """
    height, width = shape
    is_wide = picture.width * height >= picture.height * width
    if is_wide:
        long, across, side = picture.width, picture.height, round(picture.height * width / height)
    else:
        long, across, side = picture.height, picture.width, round(picture.width * height / width)
    side = max(1, min(side, long))
    count = math.ceil(2 * (long / side - 1)) + 1
    is_own = long <= MAX_TILES * side
    count, side = min(count, MAX_TILES), side if is_own else math.ceil(long / MAX_TILES)
    starts = [round(number * (long - side) / max(1, count - 1)) for number in range(count)]
    spans = [(start, start + side) for start in starts]
    return [picture.crop((a, 0, b, across) if is_wide else (0, a, across, b)) for a, b in spans], is_own


def _eight_bit(pixels: Tensor) -> Tensor:
    return pixels.mul(255).round().to(torch.uint8)


def _colour(mean: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue
