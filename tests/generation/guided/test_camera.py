"""Camera moves: whole pixels exactly, zoom and roll by what they should do to known pictures."""

import pytest
import torch
from torch import Tensor

from codebrush.data.decoding.images import to_pil
from codebrush.generation.guided.camera import move_camera


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 24, 40)


@pytest.mark.parametrize("size", [(24, 40), (7, 5), (600, 1024)])
def test_a_camera_that_does_not_move_sees_the_same(size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size)
    torch.testing.assert_close(move_camera(images, 1, (0, 0), 0), images, rtol=0, atol=1e-6)


def test_a_pan_moves_by_whole_pixels_and_repeats_the_border(images: Tensor) -> None:
    moved = move_camera(images, pan=(3, -2))
    assert moved.dtype == torch.float32
    rows, columns = torch.arange(24).sub(2).clamp(0, 23), torch.arange(40).add(3).clamp(0, 39)
    torch.testing.assert_close(moved, images[:, :, rows][:, :, :, columns], rtol=0, atol=1e-6)


def test_a_zoom_of_two_doubles_the_middle() -> None:
    across = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    moved = move_camera(across, zoom=2)
    torch.testing.assert_close(moved.diff(dim=-1), across.diff(dim=-1) / 2, rtol=0, atol=1e-6)
    square = torch.zeros(1, 3, 32, 32)
    square[:, :, 12:20, 12:20] = 1
    assert float(move_camera(square, zoom=2).sum()) == pytest.approx(4 * 192)
    assert float(move_camera(square, zoom=0.5).sum()) == pytest.approx(192 / 4)


def test_a_camera_that_turns_clockwise_sees_its_right_below() -> None:
    picture = torch.zeros(1, 3, 20, 30)
    picture[:, :, 13:, 13:17] = 1  # below the middle
    seen = move_camera(picture, roll=90)
    assert float(seen[0, 0, 10, 20]) == pytest.approx(1)  # to the right
    assert float(seen[0, 0, 10, 10]) == pytest.approx(0)
    there = move_camera(seen, roll=-90)
    torch.testing.assert_close(there[..., 2:-2, 7:-7], picture[..., 2:-2, 7:-7], rtol=0, atol=1e-5)


def test_what_the_camera_sees_stays_in_range(images: Tensor) -> None:
    seen = move_camera(images.round(), 1.3, (0.5, 0.25), 20)
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert to_pil(seen[0]).size == (40, 24)
