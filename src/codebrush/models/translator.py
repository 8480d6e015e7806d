"""The translator redraws a picture in another style: a U-Net that predicts what to add to each pixel.

It starts by adding nothing, so pictures of things that it was not trained on keep their shapes. The U-Net is that of
Ronneberger et al. 2015, the image-to-image setting that of Isola et al. 2017.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.layers.convolution import GroupNormSiLU, ResBlock, fast_layout, zero_convolution
from codebrush.models.pretrained import PretrainedModel

GREY = 0.5  # the pixel value that the network sees as 0


@dataclass(frozen=True)
class TranslatorConfig:
    """The names of the styles, and sizes: channels at full resolution, and their multiple at each level.

    Raises:
        ValueError: if there is no level.
    """

    styles: tuple[str, ...]
    channels: int = 24
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    norm_groups: int = 8

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ValueError("a translator needs at least one multiplier")

    @property
    def factor(self) -> int:
        """Heights and widths of pictures must be multiples of it, in pixels."""
        return 2 ** (len(self.multipliers) - 1)


class Translator(PretrainedModel):
    """Adds to a picture what brings it into a style. A fresh one adds nothing."""

    config_class = TranslatorConfig
    compact = r"(down|middle|up)\..*(conv\d|shortcut)\.weight"
    config: TranslatorConfig

    def __init__(self, config: TranslatorConfig):
        super().__init__()
        self.config = config
        widths = [config.channels * times for times in config.multipliers]
        before, after, groups = [widths[0], *widths[:-1]], [*widths[1:], widths[-1]], config.norm_groups
        self.head = nn.Conv2d(3, widths[0], 3, padding=1)
        self.styles = nn.ModuleList(nn.Embedding(len(config.styles), width) for width in widths)
        self.down = nn.ModuleList(ResBlock(i, o, groups) for i, o in zip(before, widths, strict=True))
        self.middle = ResBlock(widths[-1], widths[-1], groups)
        self.up = nn.ModuleList(
            ResBlock(width + below, width, groups) for width, below in zip(widths, after, strict=True)
        )
        self.norm = GroupNormSiLU(widths[0], groups)
        self.last_convolution = zero_convolution(widths[0], 3)

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and the number of a style for each (B,) int64 -> (B, 3, H, W), unclamped.

        H and W must be multiples of the config's `factor`.
        """
        x, kept = self.head(fast_layout(images - GREY)), []  # (B, channels, H, W)
        for level, block in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if level else x  # half as high and wide
            x = block(x)  # (B, channels of this level, h, w)
            x = x + self.styles[level](styles)[:, :, None, None]
            kept.append(x)
        x = self.middle(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if level < len(self.up) - 1 else x
            x = self.up[level](torch.cat([x, kept[level]], dim=1))
        return images + self.last_convolution(self.norm(x))
