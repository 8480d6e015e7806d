"""Image towers: normalised pixels (B, 3, H, W) -> one vector a picture (B, E), projected and not unit length."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.transformer import Activation, Transformer, TransformerConfig


@dataclass(frozen=True)
class VisionTransformerConfig:
    """`pooling`: "class" reads a learned class token, "mean" averages the patches."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    pooling: Literal["class", "mean"] = "class"
    activation: Activation = "gelu"
    dropout: float = 0.0


@dataclass(frozen=True)
class ModifiedResNetConfig:
    """`blocks` counts the bottlenecks of the four stages; `width` is the stem's output channels."""

    image_size: int
    width: int
    blocks: tuple[int, int, int, int]
    heads: int
    embed_dim: int


ImageEncoderConfig = VisionTransformerConfig | ModifiedResNetConfig


class VisionTransformer(nn.Module):
    """CLIP's vision transformer (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021)."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(f"image size {config.image_size} is no multiple of patch {config.patch_size}")
        self.config = config
        width, side = config.width, config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        extra = 1 if config.pooling == "class" else 0
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5) if extra else None
        self.position_embedding = nn.Parameter(torch.randn(side**2 + extra, width) * width**-0.5)
        self.input_norm = nn.LayerNorm(width)
        self.transformer = Transformer(
            TransformerConfig(width, config.layers, config.heads, activation=config.activation, dropout=config.dropout)
        )
        self.final_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def _tokens(self, pixels: Tensor) -> Tensor:
        _check_size(pixels, self.config.image_size)
        # A product and not a convolution, whose backward pass to the pixels takes ten times as long on a CPU.
        side = self.config.patch_size
        x = pixels.unfold(2, side, side).unfold(3, side, side)  # (B, 3, h, w, patch, patch)
        x = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, hw, 3 * patch * patch)
        x = F.linear(x, self.patch_embedding.weight.flatten(1))  # (B, hw, D)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # (B, 1 + hw, D)
        return self.input_norm(x + self.position_embedding)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """The output of every block, each (B, tokens, D); the class token, where there is one, stands first."""
        return self.transformer.features(self._tokens(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E)."""
        x = self._tokens(pixels)
        pooled = self.transformer.first(x) if self.class_embedding is not None else self.transformer(x).mean(1)
        return self.projection(self.final_norm(pooled))


class Bottleneck(nn.Module):
    """ResNet bottleneck whose stride is an average pool, so that no pixel is skipped (Zhang 2019)."""

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
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.pool(F.relu(self.norm2(self.conv2(y))))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class AttentionPool(nn.Module):
    """One attention query, the mean of the grid, reads the whole grid: (B, C, h, w) -> (B, E)."""

    def __init__(self, side: int, channels: int, heads: int, embed_dim: int):
        super().__init__()
        self.heads = heads
        self.position_embedding = nn.Parameter(torch.randn(side**2 + 1, channels) * channels**-0.5)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (B, hw, C)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.position_embedding  # (B, 1 + hw, C)
        parts = self.query(x[:, :1]), self.key(x), self.value(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, C / heads)
        return self.out(y.transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: three-convolution stem, anti-aliased strides, attention pooling (section 2.4)."""

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
        for module in self.modules():  # each branch starts at zero (Goyal et al. 2017, section 5.1)
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """The output of every stage, each (B, C, h, w): strides 4, 8, 16 and 32."""
        _check_size(pixels, self.config.image_size)
        x = self.stem(pixels)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E)."""
        return self.pool(self.features(pixels)[-1])


def _check_size(pixels: Tensor, side: int) -> None:
    # other shapes with as many patches would pass, and read the positions of the wrong places
    if pixels.shape[-2:] != (side, side):
        raise ValueError(f"this image tower reads {side} x {side} pixels, got {tuple(pixels.shape[-2:])}")


def make_image_encoder(config: ImageEncoderConfig) -> VisionTransformer | ModifiedResNet:
    """The tower that belongs to `config`."""
    return VisionTransformer(config) if isinstance(config, VisionTransformerConfig) else ModifiedResNet(config)
