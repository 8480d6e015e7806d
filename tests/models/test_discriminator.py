import pytest
import torch
from torch import nn

from codebrush.models.discriminator import PatchGAN


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("layers", "size", "grid"), [(3, 256, 30), (3, 64, 6), (2, 64, 14), (1, 16, 6)])
def test_one_logit_a_patch(layers: int, size: int, grid: int) -> None:
    judge = PatchGAN(channels=4, layers=layers)
    assert judge(torch.rand(2, 3, size, size)).shape == (2, 1, grid, grid)


@pytest.mark.parametrize(("layers", "reach"), [(3, 70), (2, 34)])
def test_a_logit_sees_its_patch_and_no_more(layers: int, reach: int) -> None:
    judge = PatchGAN(channels=4, layers=layers).eval()
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = judge(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert images.grad is not None
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == reach


def test_layers_are_those_of_the_published_network() -> None:
    judge = PatchGAN(channels=64, layers=3)
    kinds = [type(part) for part in judge.main]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, *block * 3, nn.Conv2d]
    convolutions = [part for part in judge.main if isinstance(part, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in convolutions] == [
        (3, 64, 2, True),
        (64, 128, 2, False),
        (128, 256, 2, False),
        (256, 512, 1, False),
        (512, 1, 1, True),
    ]


def test_it_learns_to_tell_two_kinds_of_picture_apart() -> None:
    judge = PatchGAN(channels=8, layers=2)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-3)
    for _ in range(20):
        smooth = torch.rand(8, 3, 1, 1).expand(8, 3, 32, 32)
        noisy = torch.rand(8, 3, 32, 32)
        loss = torch.relu(1 - judge(smooth)).mean() + torch.relu(1 + judge(noisy)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert judge(smooth).mean() > judge(noisy).mean() + 1
