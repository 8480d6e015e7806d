"""A VQGAN that begins from one for smaller pictures and with fewer codes."""

from dataclasses import replace

import pytest
import torch

from codebrush.errors import TrainingError
from codebrush.models.quantizers.vector_quantizer import VectorQuantizer
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import make_network
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.vqgan import SPLIT, VQGANRecipe, grow_vqgan

RECIPE = VQGANRecipe(image_size=64, codebook_size=160, grow=True)


@pytest.fixture
def start() -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(replace(vqgan_micro(), codebook_update="ema"))
    assert isinstance(model.quantizer, VectorQuantizer)
    model.quantizer.initialised.fill_(True)
    model.quantizer.share.copy_(torch.rand(128))
    return model


def test_the_most_used_codes_are_split_and_everything_else_is_kept(start: VQGAN) -> None:
    with pytest.warns(UserWarning, match="grows from 128 to 160 codes"):
        made = grow_vqgan(start, RECIPE)
    assert (made.config.image_size, made.codebook_size) == (64, 160)
    before, after = start.state_dict(), made.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if value.ndim else after[name], value), name
    book, parents = after["quantizer.codebook"], before["quantizer.share"].argsort(descending=True)[:32]
    gaps = (book[128:] - book[parents]).norm(dim=1) / book[parents].norm(dim=1)
    torch.testing.assert_close(gaps, torch.full((32,), SPLIT))
    assert torch.equal(after["quantizer.share"][128:], before["quantizer.share"][parents])
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(made.eval().encode(images), start.eval().encode(images))


def test_more_than_twice_as_many_split_every_code_again(start: VQGAN) -> None:
    with pytest.warns(UserWarning, match="from 128 to 400"):
        made = grow_vqgan(start, replace(RECIPE, codebook_size=400))
    book = made.state_dict()["quantizer.codebook"]
    assert len(book.unique(dim=0)) == 400


def test_one_that_has_enough_codes_keeps_them(start: VQGAN) -> None:
    assert grow_vqgan(start, VQGANRecipe(image_size=32, codebook_size=64, grow=True)) is start
    assert grow_vqgan(start, replace(RECIPE, grow=False)) is start
    plan = StagePlan("vqgan", replace(RECIPE, codebook_size=64), LoopConfig(steps=1, batch_size=1))
    made = make_network(plan, Materials(None, {}), start=start)  # pyright: ignore
    assert isinstance(made, VQGAN)
    assert (made.config.image_size, made.codebook_size) == (64, 128)


def test_a_gumbel_quantiser_cannot_be_split() -> None:
    with pytest.raises(TrainingError, match="Gumbel quantiser cannot be split"):
        grow_vqgan(VQGAN(replace(vqgan_micro(), quantizer="gumbel", l2_normalized=False)), RECIPE)
