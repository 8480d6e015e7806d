"""Penalties on hand-made pictures: their values, and that descending them helps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from codebrush.errors import ImageError, UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.losses.penalties import (
    Penalties,
    asymmetry,
    palette_distance,
    parse_palette,
    target_distance,
    total_variation,
)


def penalty(name: str, images: Tensor, **options: Any) -> float:
    found = Penalties(GuideOptions(**options))(images.clamp(0, 1), images)
    assert set(found) == {name}
    return float(found[name])


def test_nothing_is_asked_of_a_picture_by_default() -> None:
    assert Penalties(GuideOptions())(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)) == {}
    quiet = GuideOptions(palette="#fff", palette_weight=0, symmetry="both", symmetry_weight=0)
    assert Penalties(quiet)(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)) == {}


def test_total_variation_counts_steps() -> None:
    flat, step = torch.full((1, 3, 4, 4), 0.3), torch.zeros(1, 3, 4, 4)
    step[..., 2:] = 1
    assert float(total_variation(flat)) == 0
    assert float(total_variation(step)) == pytest.approx(1 / 3)  # one of three columns of differences
    assert penalty("tv", step, tv=3.0) == pytest.approx(1)
    assert float(total_variation(step.transpose(2, 3))) == pytest.approx(1 / 3)


def test_saturation_is_for_or_against_colour() -> None:
    grey, red = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    red[:, 0] = 0.8
    assert penalty("saturation", grey, saturation=1.0) == 0
    assert penalty("saturation", red, saturation=2.0) == pytest.approx(1.6)
    assert penalty("saturation", red, saturation=-1.0) == pytest.approx(-0.8)


def test_overflow_is_what_is_clamped_away() -> None:
    images = torch.tensor([-0.5, 0.5, 1.25]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert penalty("overflow", images, overflow=2.0) == pytest.approx(2 * 0.75 / 3)


def test_the_palettes_own_colours_cost_nothing() -> None:
    palette = parse_palette("#ff0000, #00f")
    assert palette.tolist() == [[1, 0, 0], [0, 0, 1]]
    images = palette.T.reshape(1, 3, 2, 1)
    assert float(palette_distance(images, palette)) == 0
    assert float(palette_distance(torch.zeros(1, 3, 2, 2), palette)) == pytest.approx(1)
    assert penalty("palette", torch.zeros(1, 3, 2, 2), palette="#f00", palette_weight=0.5) == pytest.approx(0.5)


def test_the_palette_pulls_each_pixel_to_its_nearest_colour() -> None:
    images, palette = torch.rand(2, 3, 5, 4).requires_grad_(), torch.rand(7, 3)
    naive = images.detach().clone().requires_grad_()
    squares = torch.stack([(naive - colour.view(3, 1, 1)).square().sum(1) for colour in palette])
    found, expected = palette_distance(images, palette), squares.amin(0).mean()
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, images) + torch.autograd.grad(expected, naive)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("axis", "dims"), [("horizontal", [3]), ("vertical", [2]), ("both", [2, 3])])
def test_a_symmetric_picture_costs_nothing(axis: str, dims: list[int]) -> None:
    images = torch.rand(1, 3, 6, 6)
    for dim in dims:
        images = (images + images.flip(dim)) / 2
    assert float(asymmetry(images, axis)) == pytest.approx(0, abs=1e-12)
    assert float(asymmetry(torch.rand(1, 3, 6, 6), axis)) > 0.05
    assert penalty("symmetry", images, symmetry=axis) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"tv": 1.0}, {"saturation": 1.0}, {"overflow": 1.0}, {"palette": "#f00,#00f"}, {"symmetry": "both"}],
    ids=str,
)
def test_descending_a_penalty_lowers_it(options: dict[str, Any]) -> None:
    raw = (torch.rand(1, 3, 8, 8) * 1.4 - 0.2).requires_grad_()
    penalties = Penalties(GuideOptions(**options))

    def value() -> Tensor:
        return torch.stack(list(penalties(raw.clamp(0, 1), raw).values())).sum()

    before = float(value().detach())
    for _ in range(60):
        (gradient,) = torch.autograd.grad(value(), raw)
        raw.data -= 0.05 * gradient / gradient.abs().max().clamp(min=1e-9)
    assert float(value().detach()) < 0.8 * before


def test_a_picture_gives_its_colours(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 10, 20))
    picture.save(tmp_path / "two.png")
    found = sorted(parse_palette(str(tmp_path / "two.png")).tolist())
    assert found == [[0, 0, 1], [1, 0, 0]]
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"no\.png"):
        parse_palette(str(tmp_path / "no.png"))


@pytest.mark.parametrize("text", ["red", "#ff", "#ggg", "#f00;#0f0", "#fff,", "nowhere.png", "", "a" * 5000])
def test_what_is_no_palette_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r'^palette must be colours like "#ff0000,#0000ff"'):
        parse_palette(text)


def test_target_distance_leads_to_the_target() -> None:
    images, target = torch.rand(2, 3, 4, 4).requires_grad_(), torch.rand(1, 3, 4, 4)
    (gradient,) = torch.autograd.grad(target_distance(images, [(target, 1.0)]), images)
    torch.testing.assert_close(images.detach() - gradient * images.numel() / 2, target.expand(2, 3, 4, 4))


def test_target_distance_is_a_weighted_mean_square() -> None:
    images = torch.zeros(2, 3, 4, 4)
    found = target_distance(images, [(torch.full((1, 3, 4, 4), 0.5), 2.0), (torch.ones(1, 3, 4, 4), 0.1)])
    assert float(found) == pytest.approx(2 * 0.25 + 0.1)
