"""Brings pictures to the size that a CLIP reads, as its published preprocessing does.

`clip_resize` is exact: with `CLIP.encode_image` after it, a published CLIP gives the numbers of its original code.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import MAX_PIXELS, decode_image, stack, to_tensor
from codebrush.models.clip import CLIP
from codebrush.models.encoders.image_shape import image_shape

Size = int | tuple[int, int]  # in pixels: the side of a square, or (height, width)


def pixels_for(clip: CLIP, images: Sequence[bytes | str | Path | Image.Image]) -> Tensor:
    """Pictures or their files -> (B, 3, H, W) float32 in [0, 1] for `clip.encode_image`, resized as the CLIP expects.

    Raises:
        ImageError: if a picture cannot be read.
        PackError: if the CLIP's `resize_mode` is "plain" and it reads pictures that are not square.
    """
    if clip.config.resize_mode != "plain":
        return preprocess(images, clip.image_shape, crop=clip.config.resize_mode == "crop")
    return stack([decode_image(image, wanted=clip.image_size) for image in images], clip.image_size)


def preprocess(images: Sequence[bytes | str | Path | Image.Image], size: Size, crop: bool = True) -> Tensor:
    """Pictures or their files -> (B, 3, H, W) float32 in [0, 1], each resized by `clip_resize`.

    As in the original code, transparency is dropped and not laid over white; unlike there, files are turned upright
    and 16-bit ones keep their shades.

    Raises:
        ImageError: if a picture cannot be read.
    """
    wanted = max(image_shape(size))
    pictures = (decode_image(image, keep_mode=True, wanted=wanted) for image in images)
    fitted = [to_tensor(clip_resize(picture, size, crop)) for picture in pictures]
    return torch.stack(fitted) if fitted else torch.zeros(0, 3, *image_shape(size))


def clip_resize(image: Image.Image, size: Size, crop: bool = True) -> Image.Image:
    """A picture of any mode and shape -> its RGB pixels at `size`, by Pillow's bicubic filter.

    With `crop` the picture is scaled until it just covers `size`, and its middle is cut out and only then converted to
    RGB, so that palettes and transparency come out as in OpenAI's and open_clip's code. Without it the picture is
    converted to RGB and squeezed to `size` whole (SigLIP).
    """
    height, width = image_shape(size)
    if not crop:
        return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    whole_width, whole_height = _covering(image.width, image.height, size)
    left, top = _margin(whole_width, width), _margin(whole_height, height)
    if whole_width * whole_height > MAX_PIXELS:  # a strip, whose scaled long side would not fit into memory
        across, down = image.width / whole_width, image.height / whole_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box).convert("RGB")
    scaled = image.resize((whole_width, whole_height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + width, top + height)).convert("RGB")


def _covering(width: int, height: int, size: Size) -> tuple[int, int]:
    """Width and height of a picture scaled until it just covers `size`. The longer side of a square size loses its
    fraction, as in OpenAI's code; for other sizes both are rounded, as in open_clip's."""
    target_height, target_width = image_shape(size)
    if target_height != target_width:
        ratio = min(height / target_height, width / target_width)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return target_width, int(target_width * height / width)
    return int(target_width * width / height), target_width


def _margin(side: int, size: int) -> int:
    return round((side - size) / 2.0)  # a half goes to the even number
