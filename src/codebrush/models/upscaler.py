"""Pictures in, the same pictures two or four times as large out: bicubic, and what a network adds to it.

Residual blocks see the small picture, and pixel shuffles spread what they found over the large one (Ledig et al. 2017,
"SRResNet"; Lim et al. 2017, "EDSR", which leaves out batch norm, as it would stretch the colours of a picture). The
last shuffle makes the colours at once (Shi et al. 2016, "ESPCN").

A network doubles a picture, and doubles it again for four times the size; one of scale 4 does so in one step.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.convolution import fast_layout, zero_convolution
from codebrush.models.pretrained import PretrainedModel

GREY = 0.5  # what the network takes for 0
BICUBIC_REACH = 2  # pixels on either side that bicubic reads


@dataclass(frozen=True)
class UpscalerConfig:
    """Sizes: how many times as large, channels, and residual blocks."""

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
        """How far from a pixel of the input another can be that its output depends on."""
        return max(BICUBIC_REACH, 2 + 2 * self.blocks + self.doublings)


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Bicubic as Pillow has it: (B, C, H, W) -> (B, C, scale H, scale W), unclamped."""
    return F.interpolate(images, scale_factor=float(scale), mode="bicubic", antialias=True)


def reduce(images: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic as Pillow has it: (B, C, H, W) -> (B, C, H / scale, W / scale), clamped to [0, 1]."""
    size = (images.shape[-2] // scale, images.shape[-1] // scale)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


class Upscaler(PretrainedModel):
    """Adds to bicubic what it leaves out. A fresh one adds nothing."""

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
        """The weight that adaptive losses are balanced at."""
        return self.last_convolution.weight

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> (B, 3, scale H, scale W); linear to [0, 1] and unclamped, so that gradients
        flow."""
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
