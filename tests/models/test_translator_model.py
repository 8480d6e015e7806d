"""The translator adds to a picture, differently for each style."""

from pathlib import Path

import pytest
import torch
from torch import nn

from codebrush.models.translator import Translator, TranslatorConfig

CONFIG = TranslatorConfig(("flat", "round", "thin"), channels=8, multipliers=(1, 2, 2), norm_groups=4)


def trained() -> Translator:
    torch.manual_seed(0)
    model = Translator(CONFIG).eval()
    nn.init.normal_(model.last_convolution.weight, std=0.1)
    return model


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_a_fresh_one_changes_nothing(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    assert CONFIG.factor == 4
    assert torch.equal(Translator(CONFIG).eval()(images, torch.tensor([0, 2])), images)


def test_each_row_goes_to_its_own_style() -> None:
    model, images = trained(), torch.rand(1, 3, 16, 16).expand(3, -1, -1, -1)
    together = model(images, torch.tensor([0, 1, 2]))
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], model(images[:1], torch.tensor([row])), atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_gradients_reach_every_weight() -> None:
    model = trained().train()
    model(torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])).square().mean().backward()
    assert all(part.grad is not None and bool(part.grad.abs().sum() > 0) for part in model.parameters())


def test_in_16_bits_its_convolutions_take_8(tmp_path: Path) -> None:
    model, images = trained(), torch.rand(2, 3, 8, 8)
    model.save_pretrained(tmp_path / "half", torch.float16)
    model.save_pretrained(tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.4 * sizes[1]
    again = Translator.from_pretrained(tmp_path / "half")
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 0.006 * theirs.abs().max() + 1e-4, name
    wanted = torch.tensor([0, 1])
    torch.testing.assert_close(again(images, wanted), model(images, wanted), atol=0.02, rtol=0)


def test_it_is_saved_and_read(tmp_path: Path) -> None:
    model, images = trained(), torch.rand(2, 3, 8, 8)
    model.save_pretrained(tmp_path)
    again = Translator.from_pretrained(tmp_path)
    assert again.config == CONFIG
    assert torch.equal(again(images, torch.tensor([0, 1])), model(images, torch.tensor([0, 1])))
