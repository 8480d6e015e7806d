"""The upscaler enlarges pictures two or four times: bicubic interpolation, and the detail that a network adds to it.

Residual blocks work on the small picture, and pixel shuffles spread their features over the large one (SRResNet, Ledig
et al. 2017; EDSR, Lim et al. 2017, which leaves out batch norm because it would stretch the colours of a picture). The
last shuffle yields the colours directly (ESPCN, Shi et al. 2016).

An upscaler of scale 2 can be applied twice for four times the size; one of scale 4 does so in one pass.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.layers.convolution import fast_layout, zero_convolution
from codebrush.models.pretrained import PretrainedModel

GREY = 0.5  # the pixel value that the network sees as 0
BICUBIC_REACH = 2  # pixels on either side that bicubic reads


@dataclass(frozen=True)
class UpscalerConfig:
    """Sizes: `scale` is how many times as large a picture becomes, `width` the channels of the `blocks`.

    Raises:
        ValueError: if the scale is neither 2 nor 4.
    """

    scale: Literal[2, 4] = 2
    width: int = 48
    blocks: int = 8

    def __post_init__(self) -> None:
        if self.scale not in (2, 4):
            raise ValueError(f"an upscaler has the scale 2 or 4, not {self.scale}")

    @property
    def doublings(self) -> int:
        """How many pixel shuffles lead to the large picture."""
        return self.scale // 2

    @property
    def reach(self) -> int:
        """The receptive field: an output pixel depends on input pixels at most this many pixels away."""
        return max(BICUBIC_REACH, 2 + 2 * self.blocks + self.doublings)


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation with Pillow's coefficients: (B, C, H, W) -> (B, C, scale H, scale W), unclamped."""
    return F.interpolate(images, scale_factor=float(scale), mode="bicubic", antialias=True)


def reduce(images: Tensor, scale: int) -> Tensor:
    """Anti-aliased bicubic interpolation with Pillow's coefficients: (B, C, H, W) -> (B, C, H / scale, W / scale),
    clamped to [0, 1]."""
    size = (images.shape[-2] // scale, images.shape[-1] // scale)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


class Upscaler(PretrainedModel):
    """Adds detail to a bicubic enlargement. A fresh one adds nothing."""

    config_class = UpscalerConfig
    compact = r"(body|tail)\..*weight"
    config: UpscalerConfig

    def __init__(self, config: UpscalerConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.head = nn.Conv2d(3, width, 3, padding=1)
        blocks = [PlainBlock(width) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(width, width, 3, padding=1))
        self.last_convolution = zero_convolution(width, 3 * 4)
        tail: list[nn.Module] = []
        for _ in range(config.doublings - 1):
            tail += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
        self.tail = nn.Sequential(*tail)

    @property
    def last_layer(self) -> Tensor:
        """The last weight, whose gradients set the weight of the adversarial loss (Esser et al. 2021, eq. 7)."""
        return self.last_convolution.weight

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> (B, 3, scale H, scale W), unclamped so that gradients flow."""
        x = self.head(fast_layout(images - GREY))  # (B, D, H, W)
        x = self.tail(x + self.body(x))  # (B, D, scale H / 2, scale W / 2)
        return enlarge(images, self.config.scale) + F.pixel_shuffle(self.last_convolution(x), 2)


class PlainBlock(nn.Module):
    """Two convolutions beside a shortcut, without norms: (B, D, H, W) -> the same shape."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))
