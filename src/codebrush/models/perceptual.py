"""Perceptual distance of images: how differently two pictures look to a frozen network (LPIPS, Zhang et al. 2018).

Features of unit length at each place are compared by their squared difference (eq. 1 there). `CLIPPerceptual` takes
them from our own CLIP and needs no file; `VGGPerceptual` is the published metric and needs its weights.
"""

import pickle
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from codebrush.errors import PackError, first_line
from codebrush.models.clip import CLIP
from codebrush.models.layers.convolution import fast_layout

VGG_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # VGG-16, configuration D


class Perceptual(nn.Module):
    """Base class of perceptual distances. It stays in eval mode, and the gradient flows to the first pictures alone."""

    def train(self, mode: bool = True) -> Self:
        """Does nothing: in eval mode batch norms keep their statistics."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> feature maps, each (B, C, ...)."""
        raise NotImplementedError

    def weigh(self, differences: list[Tensor]) -> Tensor:
        """Squared differences of unit features (B, C, ...) -> (B,)."""
        raise NotImplementedError

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Two batches of images (B, 3, H, W) in [0, 1] -> their distances (B,), 0 or more."""
        made = self.features(images)
        with torch.no_grad():
            wanted = self.features(targets)
        return self.weigh([(_unit(a) - _unit(b)).square() for a, b in zip(made, wanted, strict=True)])


def _unit(features: Tensor) -> Tensor:
    # where every channel is 0 the gradient of F.normalize is 0, and not nan
    return F.normalize(features.float(), dim=1, eps=1e-10)


class CLIPPerceptual(Perceptual):
    """Distance of the features of CLIP's image encoder, 0 (alike) to 4 (opposite), averaged over its blocks or stages.

    `clip` is frozen in place: its weights no longer require gradients.
    """

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.train()

    def features(self, images: Tensor) -> list[Tensor]:
        maps = self.clip.image_encoder.features(self.clip.normalise(images))
        return [x.transpose(1, 2) if x.ndim == 3 else x for x in maps]  # (B, tokens, D) -> (B, D, tokens)

    def weigh(self, differences: list[Tensor]) -> Tensor:
        return torch.stack([x.sum(1).flatten(1).mean(1) for x in differences]).mean(0)  # (B,)


class VGGPerceptual(Perceptual):
    """LPIPS version 0.1 with VGG-16: five feature maps, each with learned weights of its channels.

    Args:
        vgg: file of torchvision's vgg16 state dict, safetensors or a PyTorch file of tensors.
        heads: file of the five linear heads, under `lin0.model.1.weight` and so on, as the lpips package and
            taming-transformers keep them.

    Raises:
        PackError: if a file is missing, cannot be read, or holds other tensors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: Path | str, heads: Path | str):
        super().__init__()
        with torch.device("meta"):  # the weights come from the file alone
            self.network = _vgg16()
        self.network.load_state_dict(_network_weights(Path(vgg), self.network), assign=True)
        self.heads = nn.ParameterList(_head_weights(Path(heads)))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.train()

    def features(self, images: Tensor) -> list[Tensor]:
        x = (fast_layout(images) * 2 - 1 - self.shift) / self.scale  # the range that the heads were trained on
        maps = []
        for layer in self.network:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, x]  # the output of each block, of strides 1, 2, 4, 8 and 16

    def weigh(self, differences: list[Tensor]) -> Tensor:
        pairs = zip(self.heads, differences, strict=True)
        return torch.stack([(head * x).sum(1).mean((1, 2)) for head, x in pairs]).sum(0)  # (B,)


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for widths in VGG_BLOCKS:
        layers += [nn.MaxPool2d(2)] if layers else []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def _network_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    found = {key.removeprefix("features."): tensor for key, tensor in _read(path).items()}
    return {key: _taken(found, key, p.shape, path) for key, p in network.named_parameters()}


def _head_weights(path: Path) -> list[Tensor]:
    found = _read(path)
    shapes = [(1, widths[-1], 1, 1) for widths in VGG_BLOCKS]
    return [_taken(found, f"lin{level}.model.1.weight", shape, path) for level, shape in enumerate(shapes)]


def _taken(found: dict[str, Tensor], key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    if key not in found or found[key].shape != shape:
        raise PackError(f"{path} lacks {key} of shape {tuple(shape)}: it is another model's file")
    return found[key].float()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PackError(f"{path} is missing: put the weights there, or use the perceptual distance of a CLIP")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise PackError(f"{path} cannot be read as tensors ({first_line(error)}): fetch it again") from error
