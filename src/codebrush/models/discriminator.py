"""The discriminator of the VQGAN: it tells real patches of images from reconstructed ones."""

from torch import Tensor, nn

from codebrush.models.layers.convolution import fast_layout


class PatchGAN(nn.Module):
    """The pix2pix discriminator (Isola et al. 2017, section 6.1.2), as VQGAN uses it.

    `layers` convolutions of stride 2 and two of stride 1, all 4 x 4: with three layers a patch has 70 pixels a side,
    with two 34. Pictures must be at least 2 ** (layers + 2) pixels high and wide.

    Args:
        channels: of the first convolution.
        layers: number of convolutions of stride 2.
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        widths = [channels * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            parts += [
                # the norm that follows has a bias
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> one logit a patch (B, 1, h, w), larger for real ones."""
        return self.main(fast_layout(images) * 2 - 1)  # (B, 1, h, w)


def _initialise(module: nn.Module) -> None:
    # DCGAN's weights (Radford et al. 2016, section 3)
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
