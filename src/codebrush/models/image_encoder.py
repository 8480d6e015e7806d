"""CLIP's image encoders: a vision transformer and a modified ResNet.

Both turn normalised pixels (B, 3, H, W) into one vector a picture (B, E), projected and not of unit length.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.transformer import MLP, Activation, Transformer, TransformerConfig, make_norm


def image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of a picture size: the side of a square, or (height, width) already."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class VisionTransformerConfig:
    """Sizes of a vision transformer. `image_size` is the side of square pictures or (height, width), in pixels.

    `pooling`: "class" reads a learned class token, "mean" averages the patches, "attention" lets one learned query
    attend to them (Zhai et al. 2022, appendix B.1, as in SigLIP).

    The rest are choices that published models make differently. With `class_token` the blocks also have a class token
    that a mean leaves out; `norm_tokens` applies the final norm before the mean instead of after it; without
    `projection` E is the width. `hidden` is the MLP's inner width; 0 means four times the width.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    pooling: Literal["class", "mean", "attention"] = "class"
    activation: Activation = "gelu"
    dropout: float = 0.0
    hidden: int = 0
    norm_epsilon: float = 1e-5
    layer_scale: bool = False
    class_token: bool = False
    input_norm: bool = True
    norm_tokens: bool = False
    patch_bias: bool = False
    projection: bool = True

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return image_shape(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of whole patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def trunk(self) -> TransformerConfig:
        """Sizes of the blocks."""
        return TransformerConfig(
            self.width,
            self.layers,
            self.heads,
            hidden=self.hidden,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
        )


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


ImageEncoderConfig = VisionTransformerConfig | ModifiedResNetConfig


class VisionTransformer(nn.Module):
    """CLIP's vision transformer (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021).

    Raises:
        ValueError: if a picture is smaller than a patch, or `embed_dim` is not the width where there is no projection.
    """

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        if min(config.grid) < 1:
            raise ValueError(f"image size {config.image_size} is smaller than patch {config.patch_size}")
        self.config = config
        width, (rows, columns) = config.width, config.grid
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=config.patch_bias)
        extra = int(config.pooling == "class" or config.class_token)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5) if extra else None
        self.position_embedding = nn.Parameter(torch.randn(rows * columns + extra, width) * width**-0.5)
        self.input_norm = make_norm(config.trunk) if config.input_norm else nn.Identity()
        self.transformer = Transformer(config.trunk)
        self.final_norm = make_norm(config.trunk)
        self.pool = QueryPool(config.trunk) if config.pooling == "attention" else None
        self.projection = nn.Linear(width, config.embed_dim, bias=False) if config.projection else nn.Identity()
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=width**-0.5)
        elif config.embed_dim != width:
            raise ValueError(f"without a projection embed_dim must be the width, {width}")

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> what the blocks read, (B, tokens, D)."""
        _check_shape(pixels, self.config.image_shape)
        # A product and not a convolution, whose backward pass to the pixels takes ten times as long on a CPU.
        side = self.config.patch_size
        x = pixels.unfold(2, side, side).unfold(3, side, side)  # (B, 3, h, w, patch, patch)
        x = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, hw, 3 * patch * patch)
        x = F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)  # (B, hw, D)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # (B, 1 + hw, D)
        return self.input_norm(x + self.position_embedding)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, H, W) -> the output of every block, each (B, tokens, D).

        The class token, where there is one, comes first; the patches follow row by row.

        Raises:
            ValueError: if the pixels are not of the config's height and width.
        """
        return self.transformer.features(self._tokens(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> (B, E), not of unit length.

        Raises:
            ValueError: if the pixels are not of the config's height and width.
        """
        x = self._tokens(pixels)
        if self.config.pooling == "class":
            return self.projection(self.final_norm(self.transformer.first(x)))
        x = self.transformer(x)[:, int(self.class_embedding is not None) :]  # (B, hw, D)
        if self.pool is not None:
            return self.projection(self.pool(self.final_norm(x)))
        if self.config.norm_tokens:
            return self.projection(self.final_norm(x).mean(1))
        return self.projection(self.final_norm(x.mean(1)))


class QueryPool(nn.Module):
    """Attention pooling by one learned query, then a residual MLP: (B, N, D) -> (B, D).

    The MAP head of Zhai et al. 2022, appendix B.1, as in SigLIP.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(config.width) * 0.02)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        q = F.linear(self.query, self.qkv.weight[:width], self.qkv.bias[:width]).expand(len(x), 1, -1)  # (B, 1, D)
        k, v = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)  # each (B, N, D)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q.to(k.dtype), k, v))
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))  # (B, D)
        return y + self.mlp(self.norm(y))


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


class AttentionPool(nn.Module):
    """Attention pooling whose query is the mean of the grid: (B, C, h, w) -> (B, E).

    Radford et al. 2021, section 2.4. `side` is h and w.
    """

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
        _check_shape(pixels, self.config.image_shape)
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


def _check_shape(pixels: Tensor, shape: tuple[int, int]) -> None:
    # other shapes with as many patches would pass, with the positions of the wrong places
    if pixels.shape[-2:] != shape:
        raise ValueError(f"this image encoder reads {shape[0]} x {shape[1]} pixels, got {tuple(pixels.shape[-2:])}")


def make_image_encoder(config: ImageEncoderConfig) -> VisionTransformer | ModifiedResNet:
    """A freshly initialised image encoder of the kind and sizes of `config`."""
    return VisionTransformer(config) if isinstance(config, VisionTransformerConfig) else ModifiedResNet(config)
