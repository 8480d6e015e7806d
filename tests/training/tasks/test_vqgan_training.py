"""What the terms of a VQGAN's loss add, and what a run for its decoder alone leaves as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codebrush.data.structural_similarity import structural_similarity
from codebrush.models.vqgan import VQGAN
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from micro_models import SIZE, VQGAN_RECIPE

LOOP = LoopConfig(steps=6, batch_size=8, warmup=1, ema_decay=0.5, threads=1, log_every=3, checkpoint_every=6)


@pytest.fixture(scope="module")
def materials(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    data = load_captioned(SourceConfig(str(shapes)).open(), SIZE, tmp_path_factory.mktemp("cache"))
    return Materials(data, {"clip": Tokenizer.wordpiece()})


def test_structural_similarity_joins_the_loss_with_its_weight(materials: Materials) -> None:
    torch.manual_seed(0)
    network = make_network(StagePlan("vqgan", VQGAN_RECIPE, LOOP), materials)
    losses, metrics = [], {}
    for weight in (0.0, 0.5):
        task = make_task(StagePlan("vqgan", replace(VQGAN_RECIPE, ssim=weight), LOOP), materials, network)
        network.eval()  # no code is moved between the two
        batch = task.batch(np.arange(8), np.random.default_rng(0))
        (objective,) = task.objectives(batch, 0)
        losses.append(float(objective.loss.detach()))
        metrics = objective.metrics
    images = batch["images"].float() / 255
    assert isinstance(network, VQGAN)
    with torch.no_grad():
        alike = structural_similarity(network(images).images, images).mean()
    torch.testing.assert_close(metrics["ssim"].detach(), alike)
    assert losses[1] - losses[0] == pytest.approx(0.5 * (1 - float(alike)), abs=1e-4)


def test_a_run_for_the_decoder_alone_leaves_every_code_as_it_was(materials: Materials, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = StagePlan("vqgan", replace(VQGAN_RECIPE, decoder_only=True), LOOP)
    start = run_stage(replace(plan, recipe=VQGAN_RECIPE), materials, tmp_path / "whole")
    assert isinstance(start, VQGAN)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    made = run_stage(plan, materials, tmp_path / "decoder", start=start)
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} <= {"decoder", "post_quant_conv"}
