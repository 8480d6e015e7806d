"""What is noticed about a CLIP's log: each fault once, in one line that names the remedy, and nothing on a good run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codebrush.text.tokenizer import train_bpe
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.clip import CLIPRecipe, make_clip
from codebrush.training.tasks.clip_diagnostics import CLIPDiagnostics, clashing_share, guessing_loss
from codebrush.training.tasks.contrastive_loss import contrastive_loss, sigmoid_loss

GOOD = {"clip_loss": 1.0, "logit_scale": 20.0, "clashing": 0.0}


def reported(diagnostics: CLIPDiagnostics, lines: int = 20, first: int = 1, **values: float) -> list[str]:
    return [line for step in range(first, first + lines) for line in diagnostics.remarks(step, {**GOOD, **values})]


def test_a_good_run_is_left_alone():
    assert reported(CLIPDiagnostics(64, 1000)) == []


@pytest.mark.parametrize(
    ("diagnostics", "values", "remedy"),
    [
        (
            CLIPDiagnostics(64, 1000),
            {"clip_loss": math.log(64) * 1.015},
            "raise recipe.learning_rate or loop.batch_size",
        ),
        (CLIPDiagnostics(64, 1000), {"clip_loss": math.log(64) * 0.985}, "check that the captions"),
        (CLIPDiagnostics(1, 1000), {"clip_loss": 0.0}, "loop.batch_size"),
        (CLIPDiagnostics(64, 1000, "sigmoid"), {"clip_loss": 1 + math.log(64)}, "raise recipe.learning_rate"),
        (CLIPDiagnostics(64, 1000), {"logit_scale": 99.999}, "lower recipe.learning_rate, or add pictures"),
        (CLIPDiagnostics(64, 1000), {"clashing": 0.25}, "name source.group (--group)"),
        (CLIPDiagnostics(64, 127), {}, "add pictures, or lower loop.batch_size"),
    ],
)
def test_each_fault_is_reported_once_with_its_remedy(
    diagnostics: CLIPDiagnostics, values: dict[str, float], remedy: str
):
    (line,) = reported(diagnostics, **values)
    assert remedy in line
    assert "\n" not in line
    assert reported(diagnostics, **values) == []


@pytest.mark.parametrize(
    "values",
    [
        {"clip_loss": math.log(64) * 1.03},
        {"clip_loss": math.log(64) * 0.97},
        {"logit_scale": 99.0},
        {"clashing": 0.2},
    ],
)
def test_values_near_a_limit_are_not_reported(values: dict[str, float]):
    assert reported(CLIPDiagnostics(64, 128), **values) == []


def test_a_fault_must_last_and_the_warmup_does_not_count():
    diagnostics = CLIPDiagnostics(64, 1000, warmup=100, patience=4)
    assert reported(diagnostics, lines=100, clip_loss=math.log(64)) == []
    assert reported(diagnostics, lines=3, first=101, clip_loss=math.log(64)) == []
    assert len(reported(diagnostics, lines=1, first=104, clip_loss=math.log(64))) == 1


def test_too_few_pictures_are_reported_before_the_first_step():
    assert len(CLIPDiagnostics(8, 15).remarks(0, {})) == 1
    assert CLIPDiagnostics(8, 16).remarks(0, {}) == []


def test_captions_of_two_groups_clash_and_those_of_one_do_not():
    tokens = np.array([[1, 5, 2], [1, 5, 2], [1, 6, 2], [1, 6, 2], [1, 7, 2]])
    assert clashing_share(tokens, np.array([0, 0, 1, 1, 2])) == 0
    assert clashing_share(tokens, np.array([0, 3, 1, 1, 2])) == pytest.approx(2 / 5)
    assert clashing_share(tokens, np.array([0, 3, 1, 4, 0])) == pytest.approx(4 / 5)


def test_the_guessing_loss_is_that_of_equal_embeddings():
    same = F.normalize(torch.ones(16, 4), dim=-1)
    groups = torch.arange(16)
    softmax = contrastive_loss(same, same, torch.tensor(10.0), groups)
    assert guessing_loss(16, "softmax") == pytest.approx(softmax.item(), rel=1e-5)
    biases = torch.linspace(-20, 0, 2001)
    best = min(sigmoid_loss(same, same, torch.tensor(10.0), bias, groups).item() for bias in biases)
    assert guessing_loss(16, "sigmoid") == pytest.approx(best, rel=1e-4)


def test_a_run_prints_each_fault_once_on_stderr(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = SourceConfig(str(shapes), captions=("a {background} picture",), group="file_name")
    data = load_captioned(rows.open(), 16, tmp_path)
    recipe = CLIPRecipe(
        image_size=16, width=8, layers=1, heads=2, text="bag", embed_dim=8, text_width=8, token_table=False,
        learning_rate=1e-9,
    )  # fmt: skip
    loop = LoopConfig(steps=24, batch_size=24, warmup=2, threads=1, log_every=1, checkpoint_every=100, preview_every=0)
    materials = Materials(data, {"clip": train_bpe([data.captions(0)[0]])})
    clip = make_clip(recipe, materials.tokenizer)
    with torch.no_grad():
        clip.log_scale.fill_(9.0)  # all captions are alike here, so that the loss is a guess's at any scale
        clip.image_encoder.projection.weight.zero_()
    run_stage(StagePlan("clip", recipe, loop), materials, tmp_path / "run", start=clip)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run: ") and "steps/s" not in line]
    remedies = ("lower loop.batch_size", "source.group (--group)", "captions fit their pictures", "or add pictures")
    assert [sum(remedy in line for line in said) for remedy in remedies] == [1, 1, 1, 1]
    assert len(said) == 4


def test_a_loss_that_passes_through_that_of_guessing_as_it_falls_is_not_stuck():
    diagnostics = CLIPDiagnostics(64, 1000)
    falling = (8.4, 8.5, 4.51, 4.24, 4.58, 4.02, 3.88, 3.84, 3.8)  # five of these have a mean within 2 % of ln 64
    lines = [
        diagnostics.remarks(step, {"clip_loss": loss, "logit_scale": 14.0}) for step, loss in enumerate(falling, 1)
    ]
    assert not any(lines)
