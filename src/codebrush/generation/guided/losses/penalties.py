"""Loss terms on the pixels: target pictures, total variation, saturation, overflow, palette and symmetry."""

import os
import re
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import decode_image
from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions

PALETTE_COLOURS = 8  # taken from a picture
_HEX = re.compile(r"#([0-9a-f]{3}|[0-9a-f]{6})", re.IGNORECASE | re.ASCII)


class Penalties:
    """The penalties that the options switch on. Raises UsageError or ImageError if the palette cannot be read."""

    def __init__(self, options: GuideOptions):
        self.options = options
        self.palette = None if options.palette is None else parse_palette(options.palette)

    def __call__(self, images: Tensor, raw: Tensor) -> dict[str, Tensor]:
        """Weighted scalars by name. `images` (B, 3, H, W) are clamped to [0, 1], `raw` are the same before that."""
        o, terms = self.options, {}
        if o.tv:
            terms["tv"] = o.tv * total_variation(images)
        if o.saturation:
            terms["saturation"] = o.saturation * (images.amax(1) - images.amin(1)).mean()
        if o.overflow:
            terms["overflow"] = o.overflow * (raw - raw.clamp(0, 1)).abs().mean()
        if self.palette is not None and o.palette_weight:
            terms["palette"] = o.palette_weight * palette_distance(images, self.palette)
        if o.symmetry is not None and o.symmetry_weight:
            terms["symmetry"] = o.symmetry_weight * asymmetry(images, o.symmetry)
        return terms


def target_distance(images: Tensor, targets: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Weighted sum of the mean squared differences of images (B, 3, H, W) to target pictures (1, 3, H, W): a scalar."""
    return torch.stack([weight * (images - target).square().mean() for target, weight in targets]).sum()


def total_variation(images: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels (Rudin et al. 1992, squared): a scalar."""
    return images.diff(dim=-1).square().mean() + images.diff(dim=-2).square().mean()


def palette_distance(images: Tensor, palette: Tensor) -> Tensor:
    """The mean squared distance of pixels (B, 3, H, W) to the nearest of the colours (n, 3): a scalar."""
    pixels, colours = images.movedim(1, -1).flatten(0, 2), palette.to(images)  # (BHW, 3), (n, 3)
    # Which colour is nearest has no gradient, so nothing of size n need be kept for the backward pass.
    nearest = torch.cdist(pixels.detach(), colours).argmin(1)  # (BHW,)
    return (pixels - colours[nearest]).square().sum(1).mean()


def asymmetry(images: Tensor, axis: str) -> Tensor:
    """The mean squared difference of pictures to their mirror image, "horizontal" being left to right: a scalar."""
    axes = {"horizontal": (-1,), "vertical": (-2,), "both": (-1, -2)}[axis]
    return torch.stack([(images - images.flip(each)).square().mean() for each in axes]).mean()


def parse_palette(text: str) -> Tensor:
    """Colours (n, 3) in [0, 1] from "#ff0000,#00f", or the most frequent ones of a picture file, at most 8.

    Raises:
        UsageError: if the text is neither colours nor a file.
        ImageError: if the file is not a picture.
    """
    if not text.startswith("#"):
        if not os.path.isfile(text):  # unlike Path.is_file, false for names too long to look up
            raise UsageError(
                f'palette must be colours like "#ff0000,#0000ff" or a picture, and there is no file {text}'
            )
        return _picture_colours(decode_image(text))
    return torch.tensor([_colour(part.strip(), text) for part in text.split(",")])


def _colour(part: str, text: str) -> list[float]:
    match = _HEX.fullmatch(part)
    if match is None:
        raise UsageError(f'palette must be colours like "#ff0000,#0000ff", not {text}')
    digits = match[1] if len(match[1]) == 6 else "".join(2 * digit for digit in match[1])
    return [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def _picture_colours(image: Image.Image) -> Tensor:
    quantised = image.quantize(PALETTE_COLOURS)
    colours = torch.tensor(quantised.getpalette() or [], dtype=torch.float32).view(-1, 3) / 255
    return colours[torch.frombuffer(bytearray(quantised.tobytes()), dtype=torch.uint8).unique().long()]
