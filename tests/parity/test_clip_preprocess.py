"""Pixels as the published models were shown them: the stored ones bit for bit, transformers' for SigLIP, and the bound
that the tensor path keeps to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from codebrush.data.images import decode_image, to_tensor
from codebrush.data.preprocess import fit, fit_tensor, preprocess
from codebrush.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, CLIPConfig
from codebrush.models.image_encoder import VisionTransformerConfig
from codebrush.models.text_encoder import TextTransformerConfig

PICTURES = ("rgb_61x47", "rgba_40x97", "gray_301x255")
WORST, MEAN = 1.25, 0.4  # of 255 levels: what `fit_tensor` promises


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (images - mean) / std


@pytest.mark.parametrize("name", PICTURES)
def test_stored_pixels_at_32(golden_file: Callable[[str], Path], name: str) -> None:
    path = golden_file(f"clip_preprocess_a_{name}.png")
    expected = load_file(golden_file("clip_preprocess_a_32.safetensors"))[f"output.{name}.32"]
    for picture in (path, path.read_bytes(), Image.open(path)):
        assert torch.equal(normalised(preprocess([picture], 32)[0]), expected)


@pytest.mark.parametrize("name", PICTURES)
def test_stored_pixels_at_224(golden_file: Callable[[str], Path], name: str) -> None:
    io = load_file(golden_file("clip_preprocess_a.io.safetensors"))
    pixels = preprocess([golden_file(f"clip_preprocess_a_{name}.png")], 224)[0]
    levels = (pixels * 255).round().to(torch.uint8)
    assert torch.equal(levels.float() / 255, pixels)
    if f"output.{name}.224.uint8" in io:
        assert torch.equal(levels, io[f"output.{name}.224.uint8"])
    assert torch.equal(normalised(pixels)[:, [0, 56, 112, 168]], io[f"output.{name}.224.rows"])


def test_clip_adds_the_published_mean_and_deviation_alone(golden_file: Callable[[str], Path]) -> None:
    towers = VisionTransformerConfig(32, 16, 16, 1, 2, 8), TextTransformerConfig(16, 8, 16, 1, 2, 8)
    clip = CLIP.from_config(CLIPConfig(*towers))
    expected = load_file(golden_file("clip_preprocess_a_32.safetensors"))
    images = preprocess([golden_file(f"clip_preprocess_a_{name}.png") for name in PICTURES], 32)
    assert torch.equal(clip.normalise(images), torch.stack([expected[f"output.{name}.32"] for name in PICTURES]))


def test_order_of_conversion_shows_in_the_transparent_picture(golden_file: Callable[[str], Path]) -> None:
    path = golden_file("clip_preprocess_a_rgba_40x97.png")
    right = fit(decode_image(path, keep_mode=True), 32)
    for wrong in (fit(decode_image(path), 32), fit(Image.open(path).convert("RGB"), 32)):
        assert np.abs(np.asarray(wrong, int) - np.asarray(right, int)).max() >= 5


@pytest.mark.parametrize("size", [(61, 47), (47, 61), (40, 40), (32, 32), (20, 9), (301, 255)])
def test_siglip_squeezes_as_transformers_does(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    expected = processor(noise, return_tensors="pt").pixel_values
    assert torch.allclose((preprocess([noise], 32, crop=False) - 0.5) / 0.5, expected, atol=1e-6)


def drawing(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth background with hard-edged shapes on it, as photographs and icons have them."""
    colours = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture = colours.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(20):
        left, top, across, down = rng.integers(1, max(3, min(width, height) // 2), 4).tolist()
        fill = tuple(rng.choice([0, 255], 3).tolist())
        draw.ellipse((left, top, left + across, top + down), fill=fill)
    return picture


def hardest() -> list[Image.Image]:
    """Noise of black and white dots and of all shades, drawings, and the pictures that come with the tests."""
    rng = np.random.default_rng(0)
    shapes = ((97, 64), (301, 255), (50, 50), (33, 200))
    noise = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    dots = [(255 * rng.integers(0, 2, (*shape, 3))).astype(np.uint8) for shape in shapes]
    pictures = [Image.fromarray(values) for values in (*noise, *dots)]
    return pictures + [drawing(rng, *shape) for shape in ((640, 480), (128, 128), (60, 90))]


def check_bound(pictures: list[Image.Image], size: int, crop: bool) -> None:
    for picture in pictures:
        fast, exact = fit_tensor(to_tensor(picture)[None], size, crop)[0], to_tensor(fit(picture, size, crop))
        away = (fast - exact).abs() * 255
        assert fast.shape == exact.shape == (3, size, size)
        assert away.max() <= WORST
        assert away.mean() <= MEAN


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_tensor_path_keeps_its_bound(size: int, crop: bool) -> None:
    check_bound(hardest(), size, crop)


@pytest.mark.parametrize("name", ["cifar10-mini", "emoji"])
def test_the_tensor_path_keeps_its_bound_on_real_pictures(shared: Path, name: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = shared / "data" / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"needs shared/data/{name}.parquet beside the checkout")
    table = next(parquet.ParquetFile(path).iter_batches(64, columns=["image"]))
    pictures = [decode_image(row["bytes"]) for row in table["image"].to_pylist()]
    for size in (32, 64, 224):
        check_bound(pictures, size, crop=True)


def test_the_tensor_path_takes_batches_and_gradients() -> None:
    images = torch.rand(2, 3, 40, 52, requires_grad=True)
    fitted = fit_tensor(images, 16)
    assert torch.equal(fitted[1], fit_tensor(images[1:], 16)[0])
    fitted.sum().backward()
    assert images.grad is not None
    assert images.grad[..., 6:-6].abs().sum() > 100
    assert torch.allclose(fit_tensor(torch.ones(1, 3, 8, 9), 16), torch.ones(1, 3, 16, 16), atol=1e-6)
