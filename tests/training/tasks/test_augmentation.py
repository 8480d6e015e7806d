"""Changed pictures: what each change does, and that mixed precision does not reach them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from codebrush.data.colour_jitter import draw_colour_jitter
from codebrush.training.tasks.augmentation import (
    Augmentation,
    change_appearance,
    draw_affine,
    draw_appearance,
    draw_warp,
    move,
)

ALL = Augmentation(shift=0.1, zoom=0.2, turn=15, mirror=0.5, colour=0.3, hue=10, warp=0.05, texture=0.5, erase=0.5)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 16, 16)


def change(images: Tensor, how: Augmentation) -> Tensor:
    rng = np.random.default_rng(1)
    looks, affine = draw_appearance(len(images), how, rng), draw_affine(len(images), how, rng)
    return change_appearance(move(images, affine, draw_warp(len(images), how, rng)), looks)


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


def test_a_turn_of_the_hue_keeps_greys_and_moves_colours(images: Tensor):
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(change(grey, Augmentation(hue=40)), grey, atol=1e-5, rtol=0)
    matrix = draw_colour_jitter(1, 0.0, np.random.default_rng(0), hue=40)[0, :, :3].double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3).double(), atol=1e-6, rtol=0)  # a turn, and no more
    assert (change(images, Augmentation(hue=40)) - images).abs().max() > 0.05


def test_filters_keep_surfaces_and_change_lines(images: Tensor):
    flat = torch.rand(8, 3, 1, 1).expand(-1, -1, 16, 16)
    torch.testing.assert_close(change(flat, Augmentation(texture=1.0)), flat, atol=1e-5, rtol=0)
    half = draw_appearance(2000, Augmentation(texture=0.5), np.random.default_rng(0))["filters"]
    left = (half == torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])).all((1, 2)).float().mean()
    assert float(left) == pytest.approx(0.5, abs=0.05)
    rng = np.random.default_rng(3)
    looks = draw_appearance(len(images), Augmentation(texture=1.0), rng)
    found = change_appearance(images, looks)
    for image, kernel, made in zip(images, looks["filters"], found, strict=True):
        wide = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
        plain = sum(kernel[y, x] * wide[:, y : y + 16, x : x + 16] for y in range(3) for x in range(3))
        torch.testing.assert_close(made, torch.as_tensor(plain).clamp(0, 1), atol=1e-5, rtol=0)


def test_a_box_is_erased_and_the_rest_stays(images: Tensor):
    looks = draw_appearance(len(images), Augmentation(erase=1.0), np.random.default_rng(0))
    found = change_appearance(images, looks)
    for image, made, box, fill in zip(images, found, looks["boxes"], looks["fill"], strict=True):
        left, top, right, bottom = (box * 16).round().int().tolist()
        expected = image.clone()
        expected[:, top:bottom, left:right] = fill[:, None, None]
        torch.testing.assert_close(made, expected, atol=2e-6, rtol=0)
        assert 0 < (right - left) * (bottom - top) < 128
    none = draw_appearance(500, Augmentation(erase=0.25), np.random.default_rng(0))["boxes"]
    erased = (none[:, 2] > none[:, 0]).float().mean()
    assert float(erased) == pytest.approx(0.25, abs=0.06)


def test_a_warp_is_smooth_and_no_larger_than_it_may_be():
    ramp = torch.linspace(0, 1, 64).expand(4, 3, 64, 64).contiguous()
    warped = change(ramp, Augmentation(warp=0.02))
    away = (warped - ramp).abs()
    assert 0.005 < float(away.max()) < 0.1
    assert float((warped[..., 1:] - warped[..., :-1]).min()) > -1e-3  # no place is passed twice
    assert draw_warp(4, Augmentation(), np.random.default_rng(0)) is None


def test_grey_pictures_lose_their_colour_and_keep_their_light():
    images = torch.rand(4, 3, 8, 8)
    grey = change_appearance(images, draw_appearance(4, Augmentation(grey=1.0), np.random.default_rng(0)))
    light = torch.einsum("c,bchw->bhw", torch.tensor([0.299, 0.587, 0.114]), images)
    torch.testing.assert_close(grey, light[:, None].expand_as(images))


def test_an_outlined_picture_has_lines_where_colours_meet_and_white_elsewhere():
    images = torch.tensor([0.9, 0.2, 0.2])[None, :, None, None].expand(1, 3, 8, 8).clone()
    images[:, :, :, 4:] = torch.tensor([0.2, 0.2, 0.9])[:, None, None]
    lines = change_appearance(images, draw_appearance(1, Augmentation(outline=1.0), np.random.default_rng(0)))
    torch.testing.assert_close(lines[..., :3], torch.ones(1, 3, 8, 3))
    torch.testing.assert_close(lines[..., 5:], torch.ones(1, 3, 8, 3))
    torch.testing.assert_close(lines[..., 3:5], torch.zeros(1, 3, 8, 2))


def test_another_ground_takes_the_place_of_white_alone():
    images = torch.full((1, 3, 4, 4), 0.5)
    images[..., :2] = 1.0
    looks = draw_appearance(1, Augmentation(ground=1.0), np.random.default_rng(0))
    changed = change_appearance(images, looks)
    torch.testing.assert_close(changed[..., :2], looks["ground"][:, :, None, None].expand(1, 3, 4, 2))
    torch.testing.assert_close(changed[..., 2:], images[..., 2:])


def test_what_is_not_asked_for_draws_no_random_numbers():
    """Runs that began before these changes were there go on as they began."""
    plain, with_more = np.random.default_rng(3), np.random.default_rng(3)
    draw_appearance(4, Augmentation(texture=0.5, erase=0.5), plain)
    looks = draw_appearance(4, Augmentation(texture=0.5, erase=0.5, grey=0.0, outline=0.0, ground=0.0), with_more)
    assert plain.random() == with_more.random()
    assert set(looks) == {"colour", "filters", "boxes", "fill"}
