"""The upscaler's network: what it adds to bicubic interpolation, its receptive field, saving and loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from codebrush.data.decoding.images import to_pil, to_tensor
from codebrush.errors import PackError
from codebrush.models.upscaler import Upscaler, UpscalerConfig, enlarge, reduce


def trained(scale: int, blocks: int = 1) -> Upscaler:
    """A network as training leaves it: its last layer is no longer zero."""
    model = Upscaler(UpscalerConfig(2 if scale == 2 else 4, 8, blocks))
    nn.init.normal_(model.last_layer, std=0.1)
    return model.eval()


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (8, 8)])
def test_a_fresh_network_is_bicubic(scale: int, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    model = Upscaler(UpscalerConfig(2 if scale == 2 else 4, 8, 2))
    made = model(images)
    assert made.shape == (2, 3, scale * size[0], scale * size[1])
    assert torch.equal(made, enlarge(images, scale))
    assert not torch.equal(trained(scale)(images), enlarge(images, scale))


def test_bicubic_is_pillows() -> None:
    noise = np.random.default_rng(0).integers(90, 166, (11, 6, 3), dtype=np.uint8)  # Pillow clips between its passes
    picture = Image.fromarray(noise)
    images = to_tensor(picture)[None]
    for ours, size in ((enlarge(images, 2), (12, 22)), (enlarge(images, 4), (24, 44))):
        theirs = picture.resize(size, Image.Resampling.BICUBIC)
        assert np.abs(np.array(to_pil(ours[0])).astype(int) - np.array(theirs)).max() <= 1
    smaller = picture.resize((3, 5), Image.Resampling.BICUBIC)
    assert np.abs(np.array(to_pil(reduce(images, 2)[0])).astype(int) - np.array(smaller)).max() <= 1


def test_every_weight_learns_once_the_last_layer_has_moved() -> None:
    model = trained(4)
    model(torch.rand(1, 3, 6, 6)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())
    fresh = Upscaler(UpscalerConfig(2, 8, 1))
    fresh(torch.rand(1, 3, 6, 6)).square().mean().backward()
    assert fresh.last_layer.grad is not None
    assert fresh.last_layer.grad.abs().max() > 0


@pytest.mark.parametrize(("scale", "blocks"), [(2, 0), (2, 1), (2, 3), (4, 0), (4, 2)])
def test_nothing_beyond_the_reach_counts(scale: int, blocks: int) -> None:
    torch.manual_seed(1)
    model = trained(scale, blocks).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0, 1)  # so that nothing is cut off on its way
    reach, side = model.config.reach, 2 * model.config.reach + 5
    images = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    middle = side // 2 * scale
    model(images)[0, :, middle : middle + scale, middle : middle + scale].sum().backward()
    assert images.grad is not None
    touched = images.grad.abs().sum((0, 1)).nonzero()
    distance = (touched - side // 2).abs().max().item()
    assert distance <= reach
    if blocks:
        assert distance >= reach - 1


def test_sizes_and_weights_of_the_built_in_kind() -> None:
    model = Upscaler(UpscalerConfig())
    assert model.config.reach == 19
    assert 2 * sum(weight.numel() for weight in model.parameters()) < 0.8e6  # bytes in 16 bits


def test_to_disk_and_back(tmp_path: Path) -> None:
    model = trained(2)
    model.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 5, 5)
    assert torch.equal(Upscaler.from_pretrained(tmp_path)(images), model(images))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scale": 3}))
    with pytest.raises(PackError, match="'scale' has the unknown value '3'"):
        Upscaler.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scale 2 or 4, not 3"):
        UpscalerConfig(scale=3)  # pyright: ignore[reportArgumentType]
