"""The captioner's own convolutions over a picture's pixels, for details that CLIP's features lack."""

import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 32


class PixelStem(nn.Module):
    """Convolutions that halve a picture until each pixel is a patch: (B, 3, S, S) -> (B, P, width).

    Args:
        width: length of the vector of each patch.
        halvings: how often the side S is halved, so that P = (S / 2 ** halvings) ** 2.
    """

    def __init__(self, width: int, halvings: int):
        super().__init__()
        channels = MIN_CHANNELS
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.GELU()]
        for left in reversed(range(halvings)):
            out = max(MIN_CHANNELS, width >> left) if left else width
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), ResidualBlock(out)]
            channels = out
        self.layers = nn.Sequential(*layers, ResidualBlock(channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.layers(pixels)  # (B, width, h, w)
        return self.norm(x.flatten(2).transpose(1, 2))  # (B, P, width)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: (B, C, h, w) -> the same shape.

    Each pixel is normalised over its channels: normalising each channel over the picture would lose colours.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, h, w), normalised over C
        return x + self.second(F.gelu(self.first(normed)))
