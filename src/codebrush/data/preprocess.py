"""Makes pictures square for a CLIP, as its published preprocessing does.

`clip_resize` is exact: with `CLIP.encode_image` after it, a published CLIP gives the numbers of its original code.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.images import MAX_PIXELS, decode_image, resize_square, stack, to_tensor
from codebrush.models.clip import CLIP


def pixels_for(clip: CLIP, images: Sequence[bytes | str | Path | Image.Image]) -> Tensor:
    """Pictures or their files -> (B, 3, S, S) float32 in [0, 1] for `clip.encode_image`, made square as it wants them.

    One that cannot be read is an ImageError.
    """
    if clip.config.fit != "plain":
        return preprocess(images, clip.image_size, crop=clip.config.fit == "crop")
    return stack([decode_image(image) for image in images], clip.image_size)


def preprocess(images: Sequence[bytes | str | Path | Image.Image], size: int, crop: bool = True) -> Tensor:
    """Pictures or their files -> (B, 3, size, size) float32 in [0, 1], each as `clip_resize` makes it.

    As in the original code, transparency is not laid over white; unlike there, files are turned upright and 16-bit
    ones keep their shades. One that cannot be read is an ImageError.
    """
    fitted = [to_tensor(clip_resize(decode_image(image, keep_mode=True), size, crop)) for image in images]
    return torch.stack(fitted) if fitted else torch.zeros(0, 3, size, size)


def clip_resize(image: Image.Image, size: int, crop: bool = True) -> Image.Image:
    """A picture of any mode and shape -> its size x size RGB pixels, by Pillow's bicubic filter.

    With `crop` the short side is scaled to `size` and the middle cut out, the colours of a palette and what lies under
    transparency joining only then, as in OpenAI's code. Without, the RGB picture is squeezed whole (SigLIP).
    """
    if not crop:
        return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    width, height = _scaled(image.width, image.height, size)
    if width * height > MAX_PIXELS:  # a strip, whose scaled long side would not fit into memory
        return resize_square(image, size).convert("RGB")
    left, top = _margin(width, size), _margin(height, size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size)).convert("RGB")


def _scaled(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the short side at `size`; the long one loses its fraction."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _margin(side: int, size: int) -> int:
    return round((side - size) / 2.0)  # a half goes to the even number
