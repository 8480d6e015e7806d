"""Initial latents: each picture has its own from its random stream; files are used or refused with one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import CodebrushError, ImageError, UsageError
from codebrush.generation.guided.guide_options import INITS, GuideOptions
from codebrush.generation.guided.initial_latents import colour_gradient, fractal_noise, initial_latents
from codebrush.generation.latent_files import cover, encoded
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro

KINDS: dict[str, dict[str, Any]] = {
    "unit": {},
    "euclidean": {"l2_normalized": False},
    "gumbel": {"l2_normalized": False, "quantizer": "gumbel"},
}
K, D, SIZE, GRID = 128, 8, (32, 24), (8, 6)


@pytest.fixture(params=KINDS)
def vqgan(request: pytest.FixtureRequest) -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(replace(vqgan_micro(), **KINDS[request.param])).eval().requires_grad_(False)
    torch.nn.init.normal_(model.quantizer.codebook)
    return model


@pytest.fixture
def plain() -> VQGAN:
    return VQGAN(vqgan_micro()).eval()


def pictures_of(indices: Any) -> Tensor:
    """What a code transformer would draw: a picture (3, 40, 40) that depends on its number alone."""
    return torch.stack([torch.from_numpy(np.random.default_rng(i).random((3, 40, 40), np.float32)) for i in indices])


def start(vqgan: VQGAN, init: str | Path, pictures: Any = (0,), size: tuple[int, int] = SIZE, seed: int = 5) -> Tensor:
    return initial_latents(GuideOptions(init=str(init)), vqgan, pictures, size, seed, pictures_of)


def stored(folder: Path, **tensors: Tensor) -> Path:
    save_file(tensors, folder / "start.safetensors")
    return folder / "start.safetensors"


def refusal(vqgan: VQGAN, init: str | Path, kind: type[CodebrushError] = ImageError, **changes: Any) -> str:
    with pytest.raises(kind) as error:
        start(vqgan, init, **changes)
    assert "\n" not in str(error.value)
    assert str(init) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("init", INITS)
def test_each_picture_has_a_start_of_its_own_whatever_the_batch(vqgan: VQGAN, init: str) -> None:
    both = start(vqgan, init, (0, 1))
    assert both.shape == (2, D, *GRID)
    assert both.dtype == torch.float32
    assert not both.requires_grad
    torch.testing.assert_close(both[1:], start(vqgan, init, (1,)), rtol=1e-5, atol=1e-5)
    assert torch.equal(both, start(vqgan, init, (0, 1)))
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    if init != "sample":  # the code transformer has its own stream
        assert not torch.allclose(both, start(vqgan, init, (0, 1), seed=6), atol=1e-2)


@pytest.mark.parametrize("init", INITS)
def test_a_start_depends_on_nothing_global(plain: VQGAN, init: str) -> None:
    first = start(plain, init)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(start(plain, init), first)


def test_random_codes_are_rows_of_the_codebook_and_all_alike_likely(vqgan: VQGAN) -> None:
    latent = start(vqgan, "random", range(4), (256, 256))  # 16,384 cells
    rows = latent.movedim(1, -1).reshape(-1, D)
    distance = torch.cdist(rows, vqgan.quantizer.vectors, compute_mode="donot_use_mm_for_euclid_dist")
    least, codes = distance.min(1)
    assert least.max() < 1e-6
    counts = torch.bincount(codes, minlength=K).double()
    expected = len(rows) / K
    assert ((counts - expected).square() / expected).sum() < 200  # chi-squared of 127 degrees: 127 +- 16


def test_sine_has_the_notebooks_statistics(plain: VQGAN) -> None:
    latent = start(plain, "sine", range(4), (256, 256))
    assert latent.mean().abs() < 0.005
    assert float(latent.std()) == pytest.approx(((1 - np.exp(-0.5)) / 2) ** 0.5, abs=0.003)  # of sin(0.5 normal)
    assert latent.abs().max() <= 1


def test_drawn_starts_are_their_pictures_encoded(vqgan: VQGAN) -> None:
    for init, draw in (("fractal", fractal_noise), ("gradient", colour_gradient)):
        picture = draw(SIZE, stream(5, 3, Purpose.START))
        assert torch.equal(start(vqgan, init, (3,)), encoded(vqgan, picture[None]))


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (16, 80)])
def test_fractal_noise_is_coarse_before_fine_and_alike_along_both_axes(size: tuple[int, int]) -> None:
    pictures = torch.stack([fractal_noise(size, np.random.default_rng(i)) for i in range(40)])
    assert pictures.shape == (40, 3, *size)
    assert 0 <= pictures.min() < 0.1
    assert 0.9 < pictures.max() <= 1
    assert 0.1 < pictures.std() < 0.4
    down, across = (pictures.diff(dim=axis).square().mean() for axis in (2, 3))
    assert 0.7 < down / across < 1.4  # a square stretched to 96 x 48 would have a quarter, to 16 x 80 25 times as much
    assert across < 0.02 * 2 * pictures.var()  # white noise would have all of it


def test_a_gradient_is_smooth_between_its_corners() -> None:
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(np.random.default_rng(0).random((3, 2, 2), dtype=np.float32))
    picture = colour_gradient((33, 17), rng)
    assert picture.shape == (3, 33, 17)
    torch.testing.assert_close(picture[:, ::32, ::16], corners)
    torch.testing.assert_close(picture[:, 16, 8], corners.mean((1, 2)))
    assert picture.diff(n=2, dim=1).abs().max() < 1e-5


def test_samples_are_resized_and_encoded(vqgan: VQGAN) -> None:
    asked: list[list[int]] = []

    def sample(indices: Any) -> Tensor:
        asked.append(list(indices))
        return torch.linspace(0, 1, 40).expand(len(indices), 3, 40, 40)

    latent = initial_latents(GuideOptions(init="sample"), vqgan, (2, 7), SIZE, 0, sample)
    assert asked == [[2, 7]]
    picture = torch.linspace(0, 1, 24).expand(1, 3, *SIZE)  # the same ramp, but for the halves of pixels at its ends
    torch.testing.assert_close(latent[:1], encoded(vqgan, picture), rtol=0, atol=0.15)
    with pytest.raises(UsageError, match="code transformer"):
        initial_latents(GuideOptions(init="sample"), vqgan, (0,), SIZE, 0)


def test_a_picture_is_covered_and_cut_at_the_centre(vqgan: VQGAN, tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 64), "red")
    image.paste("blue", (122, 0, 178, 64))  # 32 x 24 has the middle 48 of 300 columns, and the filter sees 4 beyond
    image.save(tmp_path / "wide.png")
    pixels = cover(image, SIZE)
    assert torch.equal(pixels, torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, *SIZE))
    torch.testing.assert_close(start(vqgan, tmp_path / "wide.png")[0], encoded(vqgan, pixels[None])[0])
    assert start(vqgan, tmp_path / "wide.png", (0, 4, 9)).shape == (3, D, *GRID)


def test_a_latent_comes_back_as_it_was_stored(vqgan: VQGAN, tmp_path: Path) -> None:
    latent = torch.randn(D, *GRID)
    for kept in (latent, latent[None]):
        found = start(vqgan, stored(tmp_path, latent=kept, codes=torch.zeros(GRID, dtype=torch.int64)), (0, 5))
        assert torch.equal(found, latent.expand(2, -1, -1, -1))


def test_several_latents_belong_to_their_pictures(plain: VQGAN, tmp_path: Path) -> None:
    latents = torch.randn(3, D, *GRID)
    path = stored(tmp_path, latent=latents)
    assert torch.equal(start(plain, path, (0, 2)), latents[[0, 2]])
    assert torch.equal(start(plain, path, (2,)), latents[2:])
    assert "3 latents" in refusal(plain, path, pictures=(2, 3))


def test_codes_are_looked_up(vqgan: VQGAN, tmp_path: Path) -> None:
    codes = torch.randint(K, GRID)
    for kept in (codes, codes[None], codes.to(torch.uint8), codes.to(torch.int16)):
        assert torch.equal(start(vqgan, stored(tmp_path, codes=kept)), vqgan.quantizer.look_up(codes[None]))


def test_stored_grids_of_another_size_are_resized(plain: VQGAN, tmp_path: Path) -> None:
    latent = torch.randn(D, 4, 4, dtype=torch.float16)
    found = start(plain, stored(tmp_path, latent=latent))
    assert torch.equal(found, F.interpolate(latent.float()[None], GRID, mode="bilinear"))
    assert start(plain, stored(tmp_path, codes=torch.randint(K, (3, 9)))).shape == (1, D, *GRID)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"latent": torch.randn(D + 1, 4, 4)}, f"must have ({D}, h, w)"),
        ({"latent": torch.randn(D, 4)}, f"must have ({D}, h, w)"),
        ({"latent": torch.randn(D, 0, 4)}, f"must have ({D}, h, w)"),
        ({"latent": torch.full((D, 4, 4), torch.nan)}, "finite"),
        ({"latent": torch.ones(D, 4, 4, dtype=torch.int32)}, "floating-point"),
        ({"codes": torch.tensor([[0, K]])}, f"not all from 0 to {K - 1}"),
        ({"codes": torch.tensor([[-1, 0]])}, f"not all from 0 to {K - 1}"),
        ({"codes": torch.rand(4, 4)}, "whole numbers"),
        ({"codes": torch.zeros(4, dtype=torch.int64)}, "whole numbers"),
        ({"codes": torch.zeros(0, 4, dtype=torch.int64)}, "whole numbers"),
        ({"weight": torch.rand(4)}, "neither a latent nor codes, but weight"),
        ({}, "but nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    plain: VQGAN, tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    assert words in refusal(plain, stored(tmp_path, **tensors))


def test_damaged_files_are_refused_in_one_line(plain: VQGAN, tmp_path: Path) -> None:
    whole = stored(tmp_path, latent=torch.randn(D, *GRID)).read_bytes()
    for content in (b"", b"no header", whole[:-1], b"\xff" * 64):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        assert "not a readable .safetensors file" in refusal(plain, path)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    refusal(plain, tmp_path / "damaged.png")


def test_an_unknown_start_says_what_there_is(plain: VQGAN, tmp_path: Path) -> None:
    assert ", ".join(INITS) in refusal(plain, "fractral", UsageError)
    refusal(plain, tmp_path, UsageError)  # a folder


def test_a_size_without_whole_codes_is_refused(plain: VQGAN) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        start(plain, "random", size=(30, 32))
