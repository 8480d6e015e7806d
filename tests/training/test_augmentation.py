"""Changed pictures: what each change does, and that mixed precision does not reach them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from codebrush.data.colour import draw_colour
from codebrush.training.augmentation import Augmentation, draw_affine, move, recolour

ALL = Augmentation(shift=0.1, zoom=0.2, turn=15, mirror=0.5, colour=0.3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 16, 16)


def change(images: Tensor, how: Augmentation) -> Tensor:
    rng = np.random.default_rng(1)
    return recolour(move(images, draw_affine(len(images), how, rng)), draw_colour(len(images), how.colour, rng))


def test_without_changes_pictures_stay(images: Tensor):
    torch.testing.assert_close(change(images, Augmentation()), images, atol=2e-6, rtol=0)


def test_a_mirror_is_a_mirror(images: Tensor):
    torch.testing.assert_close(change(images, Augmentation(mirror=1.0)), images.flip(3), atol=2e-6, rtol=0)


def test_mixed_precision_changes_nothing(images: Tensor):
    plain = change(images, ALL)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = change(images, ALL)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)
    assert not torch.equal(plain, images)
