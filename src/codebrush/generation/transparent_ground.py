"""Makes the white ground of a drawn picture transparent, where the picture that it was made from is.

Models see and draw transparent pictures over white. So what is nearly white in the drawing, and joined to what was
transparent, becomes transparent again; white parts inside the drawn object stay.
"""

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import Picture, decode_image, to_tensor
from codebrush.data.decoding.transparency import opacity
from codebrush.data.hole_filling import fill_holes
from codebrush.errors import UsageError

Transparency = Literal["kept", "dropped"]  # dropped: in versions before 0.3 results were opaque

NEARLY_WHITE = 0.12  # a colour counts as white if no channel is further below 1
PALE = 0.25  # the same where the picture before was transparent: around what it draws the VQGAN leaves a glow
CLEAR = 0.02  # opacity up to which a pixel counts as transparent
EDGE = 2  # pixels around the ground in which the object's edge is blended into it


def check_transparency(value: str) -> None:
    """Raises UsageError if `value` is not one of `Transparency`."""
    if value not in get_args(Transparency):
        raise UsageError(f"transparency is {value!r}, which this version does not know: upgrade codebrush to read it")


def is_transparent(picture: Picture) -> bool:
    """Whether a picture is transparent anywhere. Raises ImageError if it cannot be read."""
    return opacity(decode_image(picture, keep_mode=True)) is not None


def with_transparent_ground(drawn: Image.Image, before: Image.Image | None = None) -> Image.Image:
    """`drawn` (RGB) as RGBA with a transparent ground, softly blended at the object's edge.

    `before` (RGBA) is what was at the same place in the picture that it was made from, of the same size. The ground is
    what was transparent there and all white that joins it, except what was white and opaque before. None: the ground is
    what joins the drawing's border.
    """
    pixels = to_tensor(drawn)  # (3, H, W)
    below = 1 - pixels
    deepest = below.amax(0)  # (H, W)
    white = deepest <= NEARLY_WHITE
    if before is None:
        seeds = torch.ones_like(white)
        seeds[1:-1, 1:-1] = False
        shown = torch.ones_like(deepest)
    else:
        shown = to_tensor(before.getchannel("A"))[0]
        seeds = shown <= CLEAR
        stayed = (shown > 0.5) & ((1 - to_tensor(before)).amax(0) <= PALE)
        white = (white & ~stayed) | (seeds & (deepest <= PALE))
    ground = _joined(seeds, white)
    edge = _grown(ground, EDGE)
    colours = fill_holes(pixels, edge)  # of the object, up to and into the ground, so that no white fringe is left
    own = 1 - colours
    # A pixel of the edge is a blend of the object's colour and white; its share of the object is the opacity.
    share = (below * own).sum(0) / own.square().sum(0).clamp(min=1e-6)
    share = ((share - NEARLY_WHITE) / (1 - NEARLY_WHITE)).clamp(0, 1)
    share = torch.where(own.amax(0) > 2 * NEARLY_WHITE, share, shown)  # no share can be told of what is as white
    alpha = torch.where(ground, 0.0, torch.where(edge, share, 1.0))
    rgba = torch.cat([colours, alpha[None]]).mul(255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(rgba.permute(1, 2, 0).numpy()))


def _joined(seeds: Tensor, within: Tensor) -> Tensor:
    """What of `within` (H, W) bool is joined to `seeds`, side by side, in rows or in columns."""
    reached = seeds & within
    while True:
        grown = _along_rows(_along_rows(reached, within).T, within.T).T
        if torch.equal(grown, reached):
            return reached
        reached = grown


def _along_rows(reached: Tensor, within: Tensor) -> Tensor:
    """All of the runs of `within` in each row (H, W) that have something of `reached` in them."""
    runs = (~within).cumsum(1)  # (H, W): the number of a pixel's run in its row
    has = torch.zeros(within.shape[0], within.shape[1] + 1).scatter_reduce(1, runs, reached.float(), "amax")
    return within & (has.gather(1, runs) > 0)


def _grown(places: Tensor, by: int) -> Tensor:
    """`places` (H, W) bool, larger by so many pixels on each side."""
    return F.max_pool2d(places[None].float(), 2 * by + 1, 1, by)[0] > 0
