"""A prior learns where a text's pictures lie, as a stage of its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from codebrush.cli.main import run as command
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.models.prior import Prior
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.prior import PriorRecipe
from packs import micro_clip

LOOP = LoopConfig(steps=60, batch_size=8, warmup=5, ema_decay=0.9, threads=1, log_every=5, checkpoint_every=30)
PLAN = StagePlan("prior", PriorRecipe(width=64, noise=0.05, learning_rate=3e-3), LOOP)


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder / "scenes", 30, size=32, objects=1)
    data = load_captioned(SourceConfig(str(folder / "scenes")).open(), 32, folder / "cache")
    clip = micro_clip(Tokenizer.wordpiece().vocab_size).requires_grad_(False)
    return Materials(data, {"clip": Tokenizer.wordpiece()}, {"clip": clip})


def test_a_prior_learns_where_pictures_lie(materials: Materials, tmp_path: Path) -> None:
    trained = run_stage(PLAN, materials, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert isinstance(trained, Prior)
    assert lines[-1]["cosine"] > max(0.8, lines[0]["cosine"] + 0.1)


def test_a_stopped_run_ends_at_the_same_bits(materials: Materials, tmp_path: Path) -> None:
    plan = replace(PLAN, loop=replace(LOOP, steps=6, checkpoint_every=3))
    whole = run_stage(plan, materials, tmp_path / "whole")
    run_stage(replace(plan, loop=replace(plan.loop, stop_after=3)), materials, tmp_path / "part")
    (tmp_path / "part" / "model").rename(tmp_path / "gone")
    stored = (tmp_path / "part" / "stage.json").read_text().replace('"stop_after": 3', '"stop_after": 0')
    (tmp_path / "part" / "stage.json").write_text(stored)
    again = run_stage(plan, materials, tmp_path / "part", resume=True)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_another_picture_of_the_same_group_is_not_a_negative(materials: Materials) -> None:
    task = make_task(PLAN, materials, make_network(PLAN, materials))
    rows = np.arange(4)
    batch = task.batch(rows, np.random.default_rng(0))
    batch["groups"] = torch.zeros(4, dtype=torch.int64)
    (objective,) = task.objectives(batch, 0)
    cosine = float(objective.metrics["cosine"])
    assert float(objective.loss) == pytest.approx(1 - cosine, abs=1e-5)  # nobody to be told from


def test_the_command_trains_one_for_a_pack(micro_pack: Path, shapes: Path, tmp_path: Path) -> None:
    recipe = {
        "stage": "prior", "source": {"source": str(shapes)}, "recipe": {"width": 32},
        "loop": {"steps": 3, "batch_size": 4, "warmup": 1, "threads": 1},
    }  # fmt: skip
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump(recipe))
    given = ["train", "prior", str(tmp_path / "prior.yaml"), "--clip", str(micro_pack), "--out", str(tmp_path / "run")]
    assert command([*given, "--json"]) == 0
    assert Prior.from_pretrained(tmp_path / "run" / "model").config.embed_dim == 24
