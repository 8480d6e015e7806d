"""CLIP's vision transformer (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.encoders.image_shape import check_shape, image_shape
from codebrush.models.layers.pooling import QueryPool
from codebrush.models.layers.transformer import Activation, Transformer, TransformerConfig, blocks_of, make_norm


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
    def feature_shapes(self) -> list[tuple[int, int]]:
        """Patches and width of each of an encoder's `features`, without the class token."""
        rows, columns = self.grid
        return [(rows * columns, self.width)] * self.layers

    @property
    def trunk(self) -> TransformerConfig:
        """Sizes of the blocks."""
        return blocks_of(self)


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
        check_shape(pixels, self.config.image_shape)
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
