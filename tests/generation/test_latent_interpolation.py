"""Interpolated latents lie on the arc between the given ones."""

import pytest
import torch

from codebrush.errors import UsageError
from codebrush.generation.latent_interpolation import interpolate_latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_between_lie_on_the_arc(dtype: torch.dtype) -> None:
    latents = torch.randn(3, 5, 2, 4, dtype=dtype)
    found = interpolate_latents(latents, 3)
    assert found.shape == (9, 5, 2, 4)
    assert torch.equal(found[::4], latents)
    lengths = found.norm(dim=1)  # (9, h, w): evenly from one to the next
    torch.testing.assert_close(lengths[1:4], torch.stack([torch.lerp(*lengths[[0, 4]], t) for t in (0.25, 0.5, 0.75)]))
    steps = torch.nn.functional.cosine_similarity(found[:4], found[1:5], dim=1).clamp(-1, 1).arccos()
    whole = torch.nn.functional.cosine_similarity(latents[0], latents[1], dim=0).arccos()
    torch.testing.assert_close(steps, (whole / 4).expand(4, -1, -1), rtol=1e-3, atol=1e-4)


def test_an_arc_without_a_direction_is_a_line() -> None:
    a = torch.tensor([[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])[:, None]  # (2, 1, 4): four cells
    b = torch.tensor([[1.0, -1.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])[:, None]
    middle = interpolate_latents(torch.stack([a, b]), 1)[1]
    torch.testing.assert_close(middle, torch.tensor([[1.0, 0.0, 1.5, 3.0], [0.0, 0.0, 0.0, 0.0]])[:, None])


def test_nothing_lies_between_nothing() -> None:
    latents = torch.randn(3, 2, 2, 2)
    assert torch.equal(interpolate_latents(latents, 0), latents)
    assert torch.equal(interpolate_latents(latents[:1], 5), latents[:1])
    with pytest.raises(UsageError, match="between must be"):
        interpolate_latents(latents, -1)
