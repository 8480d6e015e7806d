"""Pictures are prepared as for the published models: OpenAI's bit for bit as stored, SigLIP's as transformers does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from codebrush.data.decoding.images import decode_image
from codebrush.data.preprocess import clip_resize, preprocess
from codebrush.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig

PICTURES = ("rgb_61x47", "rgba_40x97", "gray_301x255")


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
    right = clip_resize(decode_image(path, keep_mode=True), 32)
    for wrong in (clip_resize(decode_image(path), 32), clip_resize(Image.open(path).convert("RGB"), 32)):
        assert np.abs(np.asarray(wrong, int) - np.asarray(right, int)).max() >= 5


@pytest.mark.parametrize("size", [(61, 47), (47, 61), (40, 40), (32, 32), (20, 9), (301, 255)])
def test_siglip_squeezes_as_transformers_does(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    expected = processor(noise, return_tensors="pt").pixel_values
    assert torch.allclose((preprocess([noise], 32, crop=False) - 0.5) / 0.5, expected, atol=1e-6)
