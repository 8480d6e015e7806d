"""VQGAN turns images into a grid of codes and back (Esser et al. 2021, section 3.1).

Images (B, 3, H, W) in [0, 1] -> encoder -> latent (B, d, h, w) -> quantiser -> quantised latent -> decoder -> images.
Encoder and decoder work in [-1, 1] inside; their structure and names are those of taming-transformers, so that its
published weights fit.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from codebrush.errors import PackError, UsageError
from codebrush.models.layers.convolution import (
    Downsample,
    GroupNormSiLU,
    ResBlock,
    SpatialAttention,
    Upsample,
    fast_layout,
)
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.quantizers.gumbel_quantizer import GumbelQuantizer
from codebrush.models.quantizers.vector_quantizer import CodebookUpdate, VectorQuantizer


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN and its quantiser. Every level after the first halves the feature maps.

    Raises:
        PackError: if a choice is unknown, or `image_size` is not a multiple of `factor`.
    """

    image_size: int = 64  # side in pixels of the pictures it was trained on; it takes other sizes too
    channels: int = 64  # of the feature maps at full resolution
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)  # of `channels`, one a level, from full resolution down
    res_blocks: int = 1  # in each level of the encoder; the decoder has one more
    attention_resolutions: tuple[int, ...] = ()  # heights of the feature maps with attention, at `image_size`
    middle_attention: bool = False  # between the two blocks at the lowest resolution
    norm_groups: int = 32  # of group norm, at most
    latent_channels: int = 64  # the encoder's output, before its projection to `code_dim`
    code_dim: int = 8  # d, the length of a code
    codebook_size: int = 1024  # K
    quantizer: Literal["vector", "gumbel"] = "vector"
    l2_normalized: bool = True  # "vector" only, as the next two: latents and codes are compared as unit vectors
    commitment: float = 0.25  # weight of the pull of the latents towards their codes
    codebook_update: CodebookUpdate = "gradient"
    kl_weight: float = 5e-4  # "gumbel" only: weight of the pull of the code distribution towards the uniform one

    def __post_init__(self) -> None:
        if self.quantizer not in ("vector", "gumbel"):
            raise PackError(f"a VQGAN's quantizer is 'vector' or 'gumbel', not '{self.quantizer}'")
        if self.codebook_update not in ("gradient", "ema"):
            raise PackError(f"a VQGAN's codebook_update is 'gradient' or 'ema', not '{self.codebook_update}'")
        if self.image_size % self.factor:
            raise PackError(f"a VQGAN's image_size must be a multiple of {self.factor}, not {self.image_size}")

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def unit_latents(self) -> bool:
        """Whether latents and codes are compared as unit vectors."""
        return self.quantizer == "vector" and self.l2_normalized

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    def attends(self, level: int) -> bool:
        """Whether each block of `level` is followed by attention, for pictures of any size."""
        return self.image_size >> level in self.attention_resolutions


class Level(nn.Module):
    """The blocks of one resolution and the change to the next.

    Args:
        blocks: one after the other.
        attention: one after each block, or none.
        resize: name and module that halves or doubles the feature map at the end; None keeps its size.
    """

    def __init__(self, blocks: list[ResBlock], attention: list[SpatialAttention], resize: tuple[str, nn.Module] | None):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attention)
        self.resize = resize[0] if resize else ""
        if resize:
            self.add_module(*resize)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), where H' and W' are half, the same or twice as much."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.get_submodule(self.resize)(x) if self.resize else x


class Middle(nn.Module):
    """Two blocks at the lowest resolution with attention between them: (B, C, h, w) -> the same shape."""

    def __init__(self, channels: int, attention: bool, groups: int):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = SpatialAttention(channels, groups) if attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _level(config: VQGANConfig, level: int, widths: list[int], resize: tuple[str, nn.Module] | None) -> Level:
    """Level number `level` with a block from each of `widths` channels to the next."""
    blocks = [ResBlock(before, after, config.norm_groups) for before, after in pairwise(widths)]
    attended = blocks if config.attends(level) else []
    return Level(blocks, [SpatialAttention(widths[-1], config.norm_groups) for _ in attended], resize)


class Encoder(nn.Module):
    """Images in [-1, 1] (B, 3, H, W) -> features (B, latent_channels, H / factor, W / factor)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = config.level_channels
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.channels
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            resize = None if last else ("downsample", Downsample(width))
            self.down.append(_level(config, level, [channels] + [width] * config.res_blocks, resize))
            channels = width
        self.mid = Middle(channels, config.middle_attention, config.norm_groups)
        self.norm_out = GroupNormSiLU(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(fast_layout(x))  # (B, channels, H, W)
        for level in self.down:
            x = level(x)  # in the end (B, C, H / factor, W / factor)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Features (B, latent_channels, h, w) -> images around [-1, 1] (B, 3, factor h, factor w)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = config.level_channels
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config.middle_attention, config.norm_groups)
        levels: list[Level] = []
        for level, width in reversed(list(enumerate(widths))):
            resize = ("upsample", Upsample(width)) if level else None
            levels.append(_level(config, level, [channels] + [width] * (config.res_blocks + 1), resize))
            channels = width
        self.up = nn.ModuleList(reversed(levels))  # up[0] has the highest resolution and comes last
        self.norm_out = GroupNormSiLU(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(fast_layout(x)))  # (B, C, h, w)
        for level in reversed(self.up):
            x = level(x)  # in the end (B, channels, factor h, factor w)
        return self.conv_out(self.norm_out(x))


class VQGANOutput(NamedTuple):
    """Reconstructions of images, and what training needs beside them."""

    images: Tensor  # (B, 3, H, W), around [0, 1], not clamped
    latent: Tensor  # (B, d, h, w), before quantisation
    quantised: Tensor  # (B, d, h, w)
    codes: Tensor  # (B, h, w) int64
    codebook_loss: Tensor  # scalar: the quantiser's whole loss, with the commitment term weighted
    distance: Tensor  # scalar without gradient: mean squared distance of latent and code


class VQGAN(PretrainedModel):
    """The autoencoder with a codebook. Heights and widths of images must be multiples of `factor`.

    Letters: d is the length of a code, K the size of the codebook, h = H / factor and w = W / factor.
    """

    config_class: ClassVar[type] = VQGANConfig
    compact = r"(encoder|decoder)\..*weight"
    config: VQGANConfig

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.quantizer = _quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one code stands for."""
        return self.config.factor

    @property
    def codebook_size(self) -> int:
        """The number of codes, K."""
        return self.config.codebook_size

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, whose gradients set the weight of the adversarial loss (Esser et al., eq. 7)."""
        return self.decoder.conv_out.weight  # pyright: ignore[reportReturnType]

    def code_grid(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of codes for pictures of `image_size`, a side or (height, width) in pixels.

        Raises:
            UsageError: if height or width is not a positive multiple of `factor`.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise UsageError(f"a picture of {width}x{height} has no whole codes: use multiples of {self.factor}")
        return height // self.factor, width // self.factor

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> latent (B, d, h, w), before quantisation and before any normalisation.

        Raises:
            UsageError: if H or W is not a multiple of `factor`.
        """
        self.code_grid((images.shape[2], images.shape[3]))
        return self.quant_conv(self.encoder(images * 2 - 1))

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent (B, d, h, w) -> the quantised latent, of the same shape, and codes (B, h, w) int64 from 0 to K - 1.

        The gradient of the quantised latent reaches the latent unchanged, or through the softmax of a Gumbel quantiser.
        """
        return self.quantizer.quantize(latent)

    def decode(self, quantised: Tensor) -> Tensor:
        """Quantised latent (B, d, h, w) -> images (B, 3, H, W) around [0, 1], unclamped so that gradients flow."""
        return (self.decoder(self.post_quant_conv(quantised)) + 1) / 2

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 from 0 to K - 1 -> images (B, 3, H, W), around [0, 1] and not clamped."""
        return self.decode(self.quantizer.look_up(codes))

    def forward(self, images: Tensor) -> VQGANOutput:
        """Encode, quantise and decode images (B, 3, H, W) in [0, 1], with the quantiser's loss, for training.

        Raises:
            UsageError: if H or W is not a multiple of `factor`.
        """
        latent = self.encode(images)
        quantised, codes, loss, distance = self.quantizer(latent)
        return VQGANOutput(self.decode(quantised), latent, quantised, codes, loss, distance)


def _quantizer(config: VQGANConfig) -> VectorQuantizer | GumbelQuantizer:
    if config.quantizer == "gumbel":
        return GumbelQuantizer(config.codebook_size, config.code_dim, kl_weight=config.kl_weight)
    return VectorQuantizer(
        config.codebook_size,
        config.code_dim,
        l2_normalized=config.l2_normalized,
        commitment=config.commitment,
        update=config.codebook_update,
    )
