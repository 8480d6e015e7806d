"""Random views: against pixel-by-pixel references, the classic notebook's distribution, and what each option does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.generation.guided.guide_options import PADDINGS, GuideOptions, guide_options
from codebrush.generation.guided.losses.cutouts import Views, cut_out, draw_views, join_views

NOTEBOOK = guide_options({}, "notebook")
PLAIN = GuideOptions(
    cutouts=6, crop_mean=1.0, crop_std=0.0, crop_max=3.0, pad=0.0, flip=0.0, turn=0.0, shift=0.0, colour=0.0, noise=0.0,
)  # fmt: skip
LIVELY = GuideOptions(cutouts=6, pad=0.4, turn=40.0, shift=0.2, perspective=0.5, colour=0.3, noise=0.2)
NUMPY_PADDING = {"zeros": "constant", "border": "edge", "reflection": "symmetric", "wrap": "wrap"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(count: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def drawn(options: GuideOptions, size: tuple[int, int], count: int = 1, seed: int = 0) -> Views:
    return join_views([draw_views(options, size, rng(seed + row), row) for row in range(count)])


def in_pixels(views: Views, size: tuple[int, int]) -> np.ndarray:
    """The transforms (V, 3, 3) from a view's [-1, 1] to pixels from the picture's centre, in float64."""
    height, width = size
    return np.diag([width / 2, height / 2, 1]) @ views.transforms.double().numpy()


def reference(images: np.ndarray, views: Views, side: int, beyond: str) -> np.ndarray:
    """Each pixel of each view on its own: project, pad the picture for real, and mix four neighbours."""
    height, width = images.shape[2:]
    pad = 8 * max(height, width)
    mode: Any = NUMPY_PADDING[beyond]
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode=mode)
    seen = np.zeros((len(views), 3, side, side))
    for view in range(len(views)):
        picture, matrix = padded[int(views.picture[view])], views.transforms[view].double().numpy()
        for row in range(side):
            for column in range(side):
                point = matrix @ [(2 * column + 1) / side - 1, (2 * row + 1) / side - 1, 1.0]
                x = (point[0] / point[2] + 1) * width / 2 - 0.5 + pad
                y = (point[1] / point[2] + 1) * height / 2 - 0.5 + pad
                left, top = int(np.floor(x)), int(np.floor(y))
                a, b = x - left, y - top
                upper = (1 - a) * picture[:, top, left] + a * picture[:, top, left + 1]
                lower = (1 - a) * picture[:, top + 1, left] + a * picture[:, top + 1, left + 1]
                seen[view, :, row, column] = (1 - b) * upper + b * lower
    return seen


@pytest.mark.parametrize("beyond", PADDINGS)
@pytest.mark.parametrize("size", [(12, 12), (10, 17), (16, 9)])
def test_one_grid_sample_equals_pixel_by_pixel(beyond: str, size: tuple[int, int]) -> None:
    options = replace(LIVELY, beyond=beyond, colour=0.0, noise=0.0, antialias=False)
    images, views = pictures(2, *size), drawn(options, size, count=2)
    expected = reference(images.double().numpy(), views, 9, beyond)
    np.testing.assert_allclose(cut_out(images, views, 9, options).numpy(), expected, atol=1e-4)


def test_colour_and_noise_follow_the_sampling_and_nothing_is_clamped() -> None:
    size, options = (12, 12), replace(LIVELY, cutouts=20, colour=0.8, noise=0.5)
    images, views = pictures(1, *size), drawn(options, size)
    seen = cut_out(images, views, 12, options)
    expected = reference(images.double().numpy(), views, 12, "border")
    for view, plain in enumerate(expected):
        mix, offset = views.colours[view, :, :3].double().numpy(), views.colours[view, :, 3].double().numpy()
        noise = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(int(views.seeds[view])))
        coloured = np.tensordot(mix, plain, axes=1) + offset[:, None, None]
        np.testing.assert_allclose(seen[view], coloured + float(views.noise[view]) * noise.numpy(), atol=1e-4)
    assert seen.min() < -0.1
    assert seen.max() > 1.1


def test_the_notebook_preset_is_the_notebooks_chain_of_operations() -> None:
    """Padded by half a side with black, flipped, turned and shifted as a whole, then cropped and resized."""
    side, checked = 32, set()
    image = F.interpolate(pictures(1, 5, 5), (side, side), mode="bicubic")  # smooth: this chain resamples twice
    for seed in range(6):
        views = drawn(replace(NOTEBOOK, cutouts=8, noise=0.0), (side, side), seed=seed)
        generator, sizes = rng(seed), rng(seed).normal(1.2, 0.3, 8).clip(0.43, 1.9) * side
        generator.normal(size=8)
        left, top = (generator.uniform(-0.5, 0.5, 8) * (2 * side - sizes) + side - sizes / 2 for _ in range(2))
        canvas = F.pad(image, (side // 2,) * 4)
        flipped = generator.random(1) < 0.5
        canvas = canvas.flip(3) if flipped else canvas
        angle, right, down = np.deg2rad(generator.uniform(-30, 30)), *(generator.uniform(-0.2, 0.2) * 2 for _ in "xy")
        turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        affine = torch.cat([turn, turn @ torch.tensor([[right], [down]], dtype=torch.float64)], dim=1)
        moved = F.grid_sample(canvas, F.affine_grid(affine[None].float(), list(canvas.shape), align_corners=False),
                              align_corners=False)  # fmt: skip
        for view, seen in enumerate(cut_out(image, views, 16, replace(NOTEBOOK, noise=0.0))):
            place = torch.tensor([[[sizes[view] / 2 / side, 0, (left[view] + sizes[view] / 2) / side - 1],
                                   [0, sizes[view] / 2 / side, (top[view] + sizes[view] / 2) / side - 1]]])  # fmt: skip
            grid = F.affine_grid(place.float(), [1, 3, 16, 16], align_corners=False)
            crop = F.grid_sample(moved, grid, align_corners=False)[0]
            assert float((seen - crop).abs().mean()) < 0.02
        checked.add(bool(flipped[0]))
    assert checked == {True, False}


def test_sizes_and_places_of_the_notebooks_crops() -> None:
    size, options = (64, 64), replace(NOTEBOOK, cutouts=4000, flip=0.0, turn=0.0, shift=0.0)
    matrices = in_pixels(draw_views(options, size, rng()), size)
    sides, x, y = 2 * matrices[:, 0, 0] / 64, matrices[:, 0, 2] / 64, matrices[:, 1, 2] / 64
    np.testing.assert_allclose(matrices[:, 1, 1], matrices[:, 0, 0])
    assert sides.min() == pytest.approx(0.43)
    assert sides.max() == pytest.approx(1.9)
    assert sides.mean() == pytest.approx(1.2, abs=0.02)
    assert sides.std() == pytest.approx(0.3, abs=0.02)
    for centre in (x, y):  # uniform over where the crop lies within twice the side
        place = centre / (1 - sides / 2)
        assert np.abs(place).max() <= 1 + 1e-5
        assert place.mean() == pytest.approx(0, abs=0.05)
        assert place.std() == pytest.approx(3**-0.5, abs=0.02)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.05


def test_flips_turns_and_shifts_of_the_notebook() -> None:
    whole = replace(NOTEBOOK, crop_std=0.0, crop_mean=2.0, crop_max=2.0, cutouts=1)
    matrices = np.stack([in_pixels(draw_views(whole, (64, 64), rng(seed)), (64, 64))[0] for seed in range(1000)]) / 64
    flipped = np.linalg.det(matrices[:, :2, :2]) < 0
    assert flipped.mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(np.abs(np.linalg.det(matrices[:, :2, :2])), 1, atol=1e-5)  # rigid: 2 sides over 2
    degrees = np.rad2deg(np.arctan2(-matrices[:, 1, 0], matrices[:, 1, 1]))
    assert 29 < np.abs(degrees).max() <= 30
    shift = np.linalg.inv(matrices[:, :2, :2]) @ matrices[:, :2, 2:]  # in canvas sides / 2
    assert 0.39 < np.abs(shift).max() <= 0.4 + 1e-5
    assert shift.mean() == pytest.approx(0, abs=0.02)
    noise = draw_views(replace(NOTEBOOK, cutouts=4000), (64, 64), rng()).noise
    assert float(noise.min()) >= 0
    assert float(noise.max()) <= 0.22
    assert float(noise.mean()) == pytest.approx(0.11, abs=0.005)


@pytest.mark.parametrize("shared", [True, False])
def test_one_move_is_shared_by_all_views_or_each_has_its_own(shared: bool) -> None:
    options = replace(LIVELY, cutouts=40, perspective=0.0, crop_std=0.0, pad=1.0, shared_affine=shared)
    matrices = in_pixels(draw_views(options, (20, 30), rng()), (20, 30))
    different = np.abs(matrices[:, :2, :2] - matrices[:1, :2, :2]).max(axis=(1, 2)) > 1e-3
    assert different.sum() == (0 if shared else 39)
    assert len(np.unique(matrices[:, 0, 2].round(3))) == 40  # each crop has its own place


@pytest.mark.parametrize("size", [(40, 40), (20, 60), (60, 20)])
@pytest.mark.parametrize("pad", [0.0, 0.5])
def test_crops_stay_square_and_within_the_padded_picture(size: tuple[int, int], pad: float) -> None:
    short, options = min(size), replace(PLAIN, cutouts=500, crop_std=0.5, crop_min=0.1, pad=pad)
    matrices = in_pixels(draw_views(options, size, rng()), size)
    half = matrices[:, 0, 0]
    np.testing.assert_allclose(matrices[:, 1, 1], half, rtol=1e-6)
    for axis, length in ((0, size[1]), (1, size[0])):
        edge = np.abs(matrices[:, axis, 2]) + half
        assert edge.max() <= length / 2 + pad * short + 1e-4
        assert edge.max() > 0.95 * (length / 2 + pad * short)
    assert 2 * half.max() == pytest.approx(short * min(3.0, 1 + 2 * pad), rel=1e-5 if pad == 0 else 0.15)


def test_turns_of_a_picture_that_is_not_square_are_rigid() -> None:
    matrices = in_pixels(draw_views(replace(PLAIN, turn=90.0, cutouts=50), (20, 60), rng()), (20, 60))
    linear = matrices[:, :2, :2] / 10  # half of the short side
    np.testing.assert_allclose(linear @ linear.transpose(0, 2, 1), np.eye(2)[None].repeat(50, 0), atol=1e-5)


def test_a_whole_view_of_the_size_of_the_picture_is_the_picture() -> None:
    image = pictures(1, 16, 16)
    seen = cut_out(image, draw_views(PLAIN, (16, 16), rng()), 16, PLAIN)
    torch.testing.assert_close(seen, image.expand(6, -1, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beyond", PADDINGS)
def test_micro_batches_see_the_same_views(beyond: str) -> None:
    options = replace(LIVELY, beyond=beyond)
    images, views = pictures(3, 16, 20), drawn(options, (16, 20), count=3)
    whole = cut_out(images, views, 8, options)
    assert whole.shape == (18, 3, 8, 8)
    for step in (1, 4, 6, 7):
        parts = [cut_out(images, views.rows(slice(first, first + step)), 8, options) for first in range(0, 18, step)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)
    every_other = views.rows(slice(0, 18, 5))
    torch.testing.assert_close(cut_out(images, every_other, 8, options), whole[::5], atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_there_is_one_grid_sample_and_it_copies_no_picture(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[int] = []
    sample = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda x, *args, **more: (inputs.append(len(x)), sample(x, *args, **more))[1])
    cut_out(pictures(count, 16, 16), drawn(LIVELY, (16, 16), count), 8, LIVELY)
    assert inputs == [count]


def test_each_option_changes_the_views_as_it_says() -> None:
    """In a picture of 16 x 16 pixels, padded to 22.4 x 22.4, whose plain views are crops of its size."""

    def matrices(**change: Any) -> np.ndarray:
        options = replace(PLAIN, **{"cutouts": 500, "pad": 0.2, **change})
        return in_pixels(draw_views(options, (16, 16), rng()), (16, 16))

    def sides(**change: Any) -> np.ndarray:
        return 2 * np.sqrt(np.abs(np.linalg.det(matrices(**change)[:, :2, :2])))

    def degrees(**change: Any) -> np.ndarray:
        found = matrices(**change)
        return np.rad2deg(np.arctan2(-found[:, 1, 0], found[:, 1, 1]))

    assert len(matrices(cutouts=7)) == 7
    for change, side in (({}, 16), ({"crop_mean": 0.6}, 9.6), ({"crop_min": 1.3}, 20.8), ({"crop_max": 0.7}, 11.2)):
        np.testing.assert_allclose(sides(**change), side, rtol=1e-5)
    assert sides(crop_std=0.1).std() == pytest.approx(1.6, rel=0.1)
    for pad, room in ((0.0, 0.0), (0.2, 3.2), (0.5, 8.0)):  # pixels that a crop may lie beside the middle
        assert np.abs(matrices(pad=pad)[:, :2, 2]).max() == pytest.approx(room, rel=0.02)
    for flip in (0.0, 0.5, 1.0):
        assert (np.linalg.det(matrices(flip=flip)[:, :2, :2]) < 0).mean() == pytest.approx(flip, abs=0.07)
    assert np.abs(degrees()).max() == 0
    assert np.abs(degrees(turn=30.0)).max() == pytest.approx(30, rel=0.01)
    np.testing.assert_allclose(sides(turn=30.0), 16, rtol=1e-5)
    moved = matrices(shift=0.2)[:, :2, 2] - matrices()[:, :2, 2]
    assert np.abs(moved).max() == pytest.approx(0.2 * 22.4, rel=0.01)
    assert np.abs(matrices()[:, 2, :2]).max() == 0
    assert np.abs(matrices(perspective=0.5)[:, 2, :2] * 22.4 / 8).max() == pytest.approx(0.5, rel=0.01)
    for noise in (0.0, 0.3):
        strengths = draw_views(replace(PLAIN, cutouts=500, noise=noise), (16, 16), rng()).noise
        assert float(strengths.max()) == pytest.approx(noise, rel=0.01)
        assert float(strengths.mean()) == pytest.approx(noise / 2, rel=0.1)
    mixes = draw_views(PLAIN, (16, 16), rng()).colours  # of colour 0: another test has those of more
    torch.testing.assert_close(mixes, torch.eye(3, 4).expand(6, 3, 4))


def test_what_is_seen_beyond_the_picture() -> None:
    image, seen = 0.5 + pictures(1, 16, 16) / 2, {}
    for beyond in PADDINGS:
        options = replace(PLAIN, cutouts=1, pad=0.5, crop_mean=2.0, beyond=beyond)
        seen[beyond] = cut_out(image, draw_views(options, (16, 16), rng()), 32, options)[0]
        torch.testing.assert_close(seen[beyond][:, 8:24, 8:24], image[0], atol=1e-5, rtol=0)
    assert float(seen["zeros"][:, :7].abs().max()) == 0
    torch.testing.assert_close(seen["border"][:, :8, 8:24], image[0, :, :1].expand(3, 8, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["reflection"][:, :8, 8:24], image[0, :, :8].flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["wrap"][:, :8, 8:24], image[0, :, 8:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
def test_wrapping_has_no_seam(antialias: bool) -> None:
    """Where the picture begins does not matter: rolled, and looked at as much further on, it is the same."""
    options = replace(LIVELY, cutouts=12, beyond="wrap", colour=0.0, noise=0.0, antialias=antialias)
    image, views = pictures(1, 32, 48), draw_views(options, (32, 48), rng())
    seen = cut_out(image, views, 8, options)
    for right, down in ((16, 0), (0, 8), (24, 20)):
        move = torch.tensor([[1, 0, 2 * right / 48], [0, 1, 2 * down / 32], [0, 0, 1]])
        rolled = cut_out(
            image.roll((down, right), (2, 3)), replace(views, transforms=move @ views.transforms), 8, options
        )
        torch.testing.assert_close(rolled, seen, atol=1e-4, rtol=0)


def test_antialiasing_averages_what_views_would_skip() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    small, large = replace(PLAIN, crop_std=0.1), replace(PLAIN, crop_std=0.1, antialias=False)
    views = draw_views(small, (64, 64), rng())
    torch.testing.assert_close(cut_out(stripes, views, 16, small), torch.full((6, 3, 16, 16), 0.5), atol=1e-5, rtol=0)
    assert float((cut_out(stripes, views, 16, large) - 0.5).abs().max()) > 0.4
    torch.testing.assert_close(cut_out(stripes, views, 40, small), cut_out(stripes, views, 40, large), atol=0, rtol=0)


def test_antialiasing_moves_nothing_in_a_picture_of_odd_size() -> None:
    down = torch.linspace(0, 1, 47)[None, None, :, None]
    ramp = down.expand(1, 3, 47, 63) + torch.linspace(0, 1, 63)
    options = replace(PLAIN, crop_mean=0.7, crop_min=0.1, cutouts=20)
    views = draw_views(options, (47, 63), rng())
    averaged, plain = cut_out(ramp, views, 4, options), cut_out(ramp, views, 4, replace(options, antialias=False))
    assert not torch.equal(averaged, plain)
    torch.testing.assert_close(averaged[:, :, 1:-1, 1:-1], plain[:, :, 1:-1, 1:-1], atol=0.02, rtol=0)


def test_colours_stray_as_far_as_they_may_and_grey_stays_grey() -> None:
    colours = draw_views(replace(PLAIN, cutouts=2000, colour=0.4), (16, 16), rng()).colours
    grey = colours[:, :, :3].sum(2) * 0.5 + colours[:, :, 3]  # (V, 3)
    torch.testing.assert_close(grey, grey[:, :1].expand(-1, 3), atol=1e-5, rtol=0)
    assert 0.19 < float((grey - 0.5).abs().max()) <= 0.2 + 1e-5  # contrast turns about middle grey
    contrast = colours[:, 0, :3].sum(1)
    chroma = (colours[:, 0, 0] - colours[:, 1, 0]) / contrast  # how far red lies above the other two
    for factor in (contrast, chroma):
        assert 0.39 < float(factor.log().abs().max()) <= 0.4 + 1e-5
        assert float(factor.log().mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("size", [(32, 32), (10, 80)])
def test_the_strongest_perspective_keeps_the_horizon_out(size: tuple[int, int]) -> None:
    options = replace(LIVELY, cutouts=4000, perspective=0.9, crop_max=4.0, crop_mean=3.0, crop_std=1.0, pad=1.0)
    corners = torch.tensor([[x, y, 1.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    divisors = draw_views(options, size, rng()).transforms[:, 2] @ corners.T  # (V, 4)
    assert 0.1 <= float(divisors.min()) < 0.3
    assert 1.7 < float(divisors.max()) <= 1.9


@pytest.mark.parametrize("beyond", PADDINGS)
@pytest.mark.parametrize("side", [2, 5])  # at 2 the picture is pooled
def test_the_gradient_is_right(beyond: str, side: int) -> None:
    options = replace(LIVELY, cutouts=2, beyond=beyond)
    images, views = pictures(2, 5, 7, torch.float64).requires_grad_(), drawn(options, (5, 7), count=2)
    assert torch.autograd.gradcheck(lambda x: cut_out(x, views, side, options), (images,))


def test_views_follow_from_the_random_stream_alone() -> None:
    for options in (LIVELY, NOTEBOOK):
        first, again, other = (draw_views(options, (16, 24), rng(seed), 3) for seed in (5, 5, 6))
        for name in ("picture", "transforms", "colours", "noise", "seeds"):
            assert torch.equal(getattr(first, name), getattr(again, name))
        assert set(first.picture.tolist()) == {3}
        assert not torch.equal(first.transforms, other.transforms)
        assert len(set(first.seeds.tolist())) == len(first) == options.cutouts


def test_views_are_float32_of_bf16_pictures_and_under_autocast() -> None:
    image, views = pictures(1, 16, 16), draw_views(LIVELY, (16, 16), rng())
    expected = cut_out(image, views, 8, LIVELY)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cut_out(image, views, 8, LIVELY), expected)
    rough = cut_out(image.bfloat16(), views, 8, LIVELY)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, cut_out(image.bfloat16().float(), views, 8, LIVELY), atol=0, rtol=0)
