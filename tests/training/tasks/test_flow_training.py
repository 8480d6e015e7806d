"""A flow transformer is trained on stored latents: what a batch holds, what is learned, and that it resumes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stopped_runs import run_in_two

from codebrush.data.hole_filling import fill_holes
from codebrush.data.stored_codes import latents_once
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import TrainingError
from codebrush.models.clip import CLIP
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.flow import FlowRecipe, FlowTask
from packs import micro_clip

RECIPE = FlowRecipe(
    width=16, layers=1, heads=2, stem=8, text_length=6, image_share=0.25, hole_share=0.25, pair_share=0.25,
    pair_captions=("a {count} on {background}",),
)  # fmt: skip
LOOP = LoopConfig(steps=4, batch_size=8, warmup=1, ema_decay=0.5, threads=1, log_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Thirty scenes, grouped by how many shapes they hold, with their latents."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder / "scenes", 30, size=32)
    data = load_captioned(SourceConfig(str(folder / "scenes"), group="count").open(), 32, folder / "cache")
    clip = micro_clip(Tokenizer.wordpiece().vocab_size).requires_grad_(False)
    vqgan = VQGAN(vqgan_micro()).eval().requires_grad_(False)
    latents = latents_once(vqgan, data.pixels, folder / "cache")
    return Materials(data, {"clip": Tokenizer.wordpiece()}, {"clip": clip, "vqgan": vqgan}, latents=latents)


def made(materials: Materials, recipe: FlowRecipe = RECIPE) -> FlowTask:
    plan = StagePlan("flow", recipe, LOOP)
    task = make_task(plan, materials, make_network(plan, materials))
    assert isinstance(task, FlowTask)
    return task


def test_latents_are_stored_once_as_the_encoder_gives_them(materials: Materials, tmp_path: Path) -> None:
    vqgan, pixels = materials.need(VQGAN), materials.data.pixels
    first = np.array(latents_once(vqgan, pixels, tmp_path))  # a copy: the file is damaged below
    assert torch.allclose(
        torch.from_numpy(np.array(first, dtype=np.float32)),
        vqgan.encode(materials.data.images(np.arange(30)).float() / 255),
        rtol=2e-3,
        atol=2e-3,
    )
    (stored,) = tmp_path.glob("latents-*.npy")
    before = stored.stat().st_mtime_ns
    assert np.array_equal(first, latents_once(vqgan, pixels, tmp_path))
    assert stored.stat().st_mtime_ns == before
    stored.write_bytes(b"damaged")
    assert np.array_equal(first, latents_once(vqgan, pixels, tmp_path))


def test_a_fresh_network_brings_the_latents_to_mean_0_and_variance_1(materials: Materials) -> None:
    network = make_network(StagePlan("flow", RECIPE, LOOP), materials)
    assert isinstance(network, FlowTransformer)
    x = network.normalise(torch.from_numpy(np.array(materials.latents, dtype=np.float32)))
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(network.config.latent_channels), atol=1e-4)
    assert torch.allclose(x.std(dim=(0, 2, 3)), torch.ones(network.config.latent_channels), atol=1e-3)


def test_a_batch_holds_latents_and_sources(materials: Materials) -> None:
    task, rows = made(materials), np.arange(12)
    batch = task.batch(rows, np.random.default_rng(1))
    latents = torch.from_numpy(np.array(materials.latents, dtype=np.float32))
    assert torch.equal(batch["latents"], latents[:12])
    assert batch["source"].shape == (9, *latents.shape[1:])
    groups = materials.data.groups
    for place, source in enumerate(batch["source"][6:]):  # of another picture of the same group
        (other,) = [row for row in range(30) if torch.equal(latents[row], source)]
        assert (groups[other], other != 6 + place) == (groups[6 + place], True)
    condition = task._condition(batch)
    assert condition.source_latent is not None
    for place in range(3):
        hole = ~batch["shown"][3 + place].view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
        filled = fill_holes(materials.data.images(rows[3 + place : 4 + place])[0].float() / 255, hole)
        seen = materials.need(VQGAN).encode(filled[None])[0]
        assert torch.allclose(condition.source_latent[3 + place], seen, atol=1e-5)


def test_the_loss_is_that_of_rectified_flow(materials: Materials) -> None:
    task = made(materials, replace(RECIPE, time_mean=0.4, time_deviation=0.7))
    network = task.networks["flow"].eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    batch = task.batch(np.arange(8), np.random.default_rng(1))
    torch.manual_seed(5)
    (objective,) = task.objectives(batch, 0)
    torch.manual_seed(5)
    times = torch.sigmoid(0.4 + 0.7 * torch.randn(8))
    x = task.normalise(batch["latents"])
    noise, t = torch.randn_like(x), times[:, None, None, None]
    velocity = network((1 - t) * x + t * noise, times, task._condition(batch))
    assert objective.loss.item() == pytest.approx((velocity - (noise - x)).square().mean().item(), rel=1e-5)
    assert objective.loss.item() > 0.5


@pytest.mark.slow
def test_the_closed_form_of_two_pictures_is_learned(materials: Materials, tmp_path: Path) -> None:
    """For two latents c and -c the clean latent to expect is c tanh((1 - t) <c, x_t> / t^2), by Bayes' rule."""
    one = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
    one /= np.square(one).mean((0, 2, 3), keepdims=True) ** 0.5  # every channel has variance 1
    latents, c = np.tile(np.concatenate([one, -one]), (15, 1, 1, 1)).astype(np.float32), torch.from_numpy(one).float()
    flow = FlowTransformer(FlowTransformerConfig(2, (4, 4), 32, 1, 2, stem=16, unit_latents=False))
    recipe, clip = FlowRecipe(learning_rate=1e-2), materials.need(CLIP)
    task = FlowTask(flow, recipe, clip, materials.data, latents, materials.tokenizer)
    config = LoopConfig(steps=300, batch_size=32, warmup=10, ema_decay=0.9, threads=1, checkpoint_every=300)
    network = Loop(task, config, tmp_path).run()
    torch.manual_seed(3)
    for time in (0.3, 0.6, 0.8, 0.9):
        sign, noise = torch.randint(2, (256, 1, 1, 1)) * 2.0 - 1, torch.randn(256, 2, 4, 4)
        x, times = (1 - time) * sign * c + time * noise, torch.full((256,), time)
        expected = ((1 - time) / time**2 * (c * x).sum((1, 2, 3))).tanh()[:, None, None, None] * c
        with torch.no_grad():
            far, near = (each(x, times) - (x - expected) / time for each in (FlowTransformer(flow.config), network))
        assert near.square().mean() < 0.15
        assert far.square().mean() > 2 * near.square().mean()
    assert 0.3 < float(expected.abs().mean() / c.abs().mean()) < 0.6  # at the last time the sign is in doubt


def test_a_resumed_run_ends_at_the_same_bits(materials: Materials, tmp_path: Path) -> None:
    plan = StagePlan("flow", RECIPE, LOOP)
    whole = run_stage(plan, materials, tmp_path / "whole").state_dict()
    again = run_in_two(plan, materials, tmp_path / "part", stop_after=2).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_it_goes_on_from_a_network_with_the_same_conditions_alone(materials: Materials) -> None:
    start = make_network(StagePlan("flow", replace(RECIPE, pair_share=0.0, hole_share=0.0), LOOP), materials)
    with pytest.raises(TrainingError, match="has no place for what hole_share needs: set it to 0"):
        make_network(StagePlan("flow", RECIPE, LOOP), materials, start)
    assert make_network(StagePlan("flow", replace(RECIPE, hole_share=0, pair_share=0), LOOP), materials, start) is start


def test_previews_show_pictures(materials: Materials) -> None:
    from codebrush.previews import PICTURES, draw_preview

    network = make_network(StagePlan("flow", RECIPE, LOOP), materials).eval()
    sheet = draw_preview(materials, network)  # pyright: ignore[reportArgumentType]
    assert min(sheet.size) >= 32
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > PICTURES
