"""CLIP's modified ResNet (Radford et al. 2021, section 2.4)."""

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.encoders.image_shape import check_shape, image_shape
from codebrush.models.layers.pooling import AttentionPool


@dataclass(frozen=True)
class ModifiedResNetConfig:
    """Sizes of a modified ResNet for square pictures of side `image_size`, a multiple of 32 pixels.

    `blocks` counts the bottlenecks of the four stages, `width` is the number of channels after the stem, and `heads`
    are those of the attention pooling.
    """

    image_size: int
    width: int
    blocks: tuple[int, int, int, int]
    heads: int
    embed_dim: int

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return image_shape(self.image_size)

    @property
    def feature_shapes(self) -> list[tuple[int, int]]:
        """Cells and channels of each of an encoder's `features`."""
        height, width = self.image_shape
        strides = [4 * 2**stage for stage in range(len(self.blocks))]
        return [
            ((height // stride) * (width // stride), self.width * stride // 4 * Bottleneck.expansion)
            for stride in strides
        ]


class Bottleneck(nn.Module):
    """ResNet bottleneck whose stride is an average pool, so that no pixel is skipped (Zhang 2019).

    (B, channels_in, H, W) -> (B, 4 channels, H / stride, W / stride).
    """

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        out = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != out:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            conv = nn.Conv2d(channels_in, out, 1, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(pool=pool, conv=conv, norm=nn.BatchNorm2d(out)))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))  # (B, channels, H, W)
        y = self.pool(F.relu(self.norm2(self.conv2(y))))  # (B, channels, H / stride, W / stride)
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet (Radford et al. 2021, section 2.4).

    A stem of three convolutions, anti-aliased strides, attention pooling.
    """

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__()
        self.config = config
        width = config.width
        stem = []
        for source, target, stride in (
            (3, width // 2, 2),
            (width // 2, width // 2, 1),
            (width // 2, width, 1),
        ):
            conv = nn.Conv2d(source, target, 3, stride, padding=1, bias=False)
            stem += [conv, nn.BatchNorm2d(target), nn.ReLU()]
        self.stem = nn.Sequential(*stem, nn.AvgPool2d(2))
        self.stages = nn.ModuleList()
        channels = width
        for stage, count in enumerate(config.blocks):
            inner = width * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(channels, inner, stride=2 if stage and not index else 1))
                channels = inner * Bottleneck.expansion
            self.stages.append(nn.Sequential(*blocks))
        self.pool = AttentionPool(config.image_size // 32, channels, config.heads, config.embed_dim)
        for module in self.modules():  # residual branches start at zero (Goyal et al. 2017, section 5.1)
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) -> the output of every stage, each (B, C, h, w), of strides 4, 8, 16 and 32.

        Raises:
            ValueError: if the pixels are not of the config's size.
        """
        check_shape(pixels, self.config.image_shape)
        x = self.stem(pixels)  # (B, width, S / 4, S / 4)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) -> (B, E), not of unit length.

        Raises:
            ValueError: if the pixels are not of the config's size.
        """
        return self.pool(self.features(pixels)[-1])
