"""The frames of a film: every stored latent, those between, and one size throughout."""

import pytest
import torch
from torch import Tensor

from codebrush.data.decoding.images import to_tensor
from codebrush.generation.guided.run.run_film import film_frames
from codebrush.generation.latent_interpolation import interpolate_latents


def decode(latent: Tensor) -> Tensor:
    """A picture of as many pixels as cells."""
    assert latent.shape[:2] == (1, 3)
    return latent.abs()


@pytest.mark.parametrize("between", [0, 1, 4])
def test_a_film_shows_the_stored_latents_and_those_between(between: int) -> None:
    latents = torch.rand(3, 3, 4, 6) / 2
    frames = list(film_frames(list(latents), between, 10, decode, (6, 4)))
    assert len(frames) == 3 + 2 * between
    shown = torch.stack([to_tensor(frame) for frame in frames])
    torch.testing.assert_close(shown, interpolate_latents(latents, between), rtol=0, atol=0.5 / 255 + 1e-6)


def test_nothing_is_interpolated_across_a_stage_of_growth() -> None:
    latents = [torch.rand(3, 2, 3), torch.rand(3, 2, 3), torch.rand(3, 4, 6)]
    frames = list(film_frames(latents, 3, 10, decode, (6, 4)))
    assert len(frames) == 3 + 3
    assert {frame.size for frame in frames} == {(6, 4)}


def test_a_run_that_stored_nothing_has_no_frames() -> None:
    assert list(film_frames([], 3, 10, decode, (6, 4))) == []
