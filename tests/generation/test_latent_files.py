"""Pictures as latents: scaled, cropped and encoded. `guided/test_initial_latents.py` reads files of every kind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush.data.decoding.images import to_tensor
from codebrush.generation.latent_files import cover, encoded
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro

KINDS: dict[str, dict[str, Any]] = {
    "unit": {},
    "euclidean": {"l2_normalized": False},
    "gumbel": {"l2_normalized": False, "quantizer": "gumbel"},
}
SIZE = (32, 24)


@pytest.fixture(params=KINDS)
def vqgan(request: pytest.FixtureRequest) -> VQGAN:
    model = VQGAN(replace(vqgan_micro(), **KINDS[request.param])).eval().requires_grad_(False)
    torch.nn.init.normal_(model.quantizer.codebook)
    return model


def test_encoded_latents_lie_in_the_codebooks_space(vqgan: VQGAN) -> None:
    images = torch.rand(2, 3, *SIZE)
    latent = vqgan.encode(images)
    if vqgan.config.quantizer == "gumbel":  # its latent is no vector of the codebook's space
        latent = vqgan.quantizer.look_up(vqgan.quantizer.nearest(latent))
    torch.testing.assert_close(encoded(vqgan, images), latent)


@pytest.mark.parametrize("shape", [(7, 90), (90, 7), (49, 53), (1, 1), (200, 200)])
def test_any_shape_covers_any_size(shape: tuple[int, int]) -> None:
    """Of 7 pixels on 200 the rounding of floats would reach beyond the picture."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), dtype=np.uint8))
    for size in ((200, 328), (328, 200), (344, 344), (8, 8)):
        pixels = cover(noise, size)
        assert pixels.shape == (3, *size)
        assert torch.isfinite(pixels).all()


def test_a_picture_of_the_very_size_is_taken_as_it_is() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8))
    assert torch.equal(cover(image, SIZE), to_tensor(image))
