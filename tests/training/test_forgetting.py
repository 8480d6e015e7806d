"""The zero-shot gate: what it measures, when a fall passes, and what a run that it stops leaves behind."""

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from codebrush.cli.main import run as command
from codebrush.errors import DataError, TrainingError
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import train_bpe
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.task import Hooks
from codebrush.training.forgetting import PASSED_FOLDER, ForgettingGate, GateConfig, ZeroShot, read_gate
from codebrush.training.run_stage import make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.clip import CLIPRecipe

COLOURS = ("red", "lime", "blue")
RECIPE = CLIPRecipe(
    image_size=16, width=16, layers=1, heads=2, text="bag", text_width=16, embed_dim=8, token_table=False,
    train_tokens=True, learning_rate=1e-2,
)  # fmt: skip
LOOP = LoopConfig(
    steps=8, batch_size=12, warmup=1, ema_decay=0.5, threads=1, log_every=100, checkpoint_every=3, preview_every=0,
    precision="32-true",
)  # fmt: skip


def rows_config(folder: Path) -> SourceConfig:
    return SourceConfig(str(folder), captions=("a photo of a {label}", "{label}"), group="label")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty plain pictures of three colours."""
    folder = tmp_path_factory.mktemp("colours")
    rows = []
    for index in range(30):
        label = COLOURS[index % 3]
        Image.new("RGB", (16, 16), label).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "label": label})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def materials(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    data = load_captioned(rows_config(colours).open(), 16, tmp_path_factory.mktemp("cache"))
    tokenizer = train_bpe(caption for row in range(len(data)) for caption in data.captions(row))
    return Materials(data, {"clip": tokenizer})


@pytest.fixture(scope="module")
def start(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> CLIP:
    """A CLIP that knows the three colours."""
    plan = StagePlan("clip", RECIPE, replace(LOOP, steps=50, checkpoint_every=100))
    clip = run_stage(plan, materials, tmp_path_factory.mktemp("start") / "clip")
    assert isinstance(clip, CLIP)
    assert ZeroShot(materials.data, materials.tokenizer)(clip) == 1.0
    return clip


class Scripted:
    """Says one value after the other of whatever network."""

    def __init__(self, *values: float):
        self.values = list(values)

    def __call__(self, network: nn.Module) -> float:
        return self.values.pop(0)


class Known:
    """Pictures and texts whose embeddings are what the test says."""

    log_scale = torch.zeros(())

    def __init__(self, images: list[list[float]], texts: dict[str, list[float]]):
        self.images, self.texts = torch.tensor(images), texts

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize(self.images[(images[:, 0, 0, 0] * 255).round().long()], dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        names = list(self.texts)
        return F.normalize(torch.tensor([self.texts[names[row]] for row in tokens[:, 0]]), dim=-1)


class Numbered:
    """Rows whose pictures hold their number, with a group and that group's texts."""

    def __init__(self, groups: list[int], owners: dict[str, int]):
        self.groups, self.owners = np.array(groups), owners

    def __len__(self) -> int:
        return len(self.groups)

    def captions(self, row: int) -> list[str]:
        return [text for text, owner in self.owners.items() if owner == self.groups[row]]

    def images(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)


def accuracy(
    images: list[list[float]], groups: list[int], texts: dict[str, list[float]], owners: dict[str, int]
) -> float:
    names = list(texts)
    tokenizer: Any = lambda given, on_long: torch.tensor([[names.index(text)] for text in given])  # noqa: E731
    data: Any = Numbered(groups, owners)
    return ZeroShot(data, tokenizer)(Known(images, texts))


def test_a_picture_counts_where_its_class_is_the_nearest():
    texts = {"cat": [1.0, 0.0], "dog": [0.0, 1.0]}
    images = [[1.0, 0.2], [0.3, 1.0], [0.2, 1.0], [1.0, 1.0]]  # right, wrong, right, as near to both
    assert accuracy(images, [0, 0, 1, 1], texts, {"cat": 0, "dog": 1}) == 0.5


def test_a_class_is_the_mean_of_its_texts():
    texts = {"a cat": [1.0, 0.0, 0.0], "cat": [0.0, 0.0, 1.0], "dog": [0.0, 1.0, 0.0]}
    image = [0.55, 0.6, 0.5]  # nearer to "dog" than to either text of the cat, but not than to their mean
    assert accuracy([image, [0.0, 1.0, 0.0]], [0, 1], texts, {"a cat": 0, "cat": 0, "dog": 1}) == 1.0


def test_embeddings_of_nan_give_an_accuracy_of_nan():
    texts = {"cat": [1.0, 0.0], "dog": [0.0, 1.0]}
    assert math.isnan(accuracy([[math.nan, 0.2], [0.3, 1.0]], [0, 1], texts, {"cat": 0, "dog": 1}))


def test_a_gate_with_one_class_is_refused(materials: Materials):
    data = materials.data
    alone = Captioned(data.source, data.pixels, np.zeros_like(data.groups))
    with pytest.raises(DataError, match="needs two classes or more"):
        ZeroShot(alone, materials.tokenizer)


def test_a_fall_up_to_the_limit_passes(tmp_path: Path):
    gate = ForgettingGate(GateConfig(SourceConfig("x"), limit=0.05, action="warn"), Scripted(), tmp_path, last=9)
    gate.record(0, 0.7, nn.Identity())
    assert [gate.passes(top1) for top1 in (0.9, 0.7, 0.65, 0.6499)] == [True, True, True, False]


def test_it_is_due_before_between_and_after(tmp_path: Path):
    gate = ForgettingGate(GateConfig(SourceConfig("x"), every=4), Scripted(), tmp_path, last=10)
    assert [step for step in range(11) if gate.due(step)] == [0, 4, 8, 10]


def gated(
    materials: Materials, start: CLIP, folder: Path, values: tuple[float, ...], action: str = "stop", **changes: Any
) -> tuple[Loop, nn.Module]:
    """A run whose gate hears `values`, every second step."""
    folder.mkdir(exist_ok=True)
    loop = replace(LOOP, **{key: value for key, value in changes.items() if key != "pause"})
    config = GateConfig(SourceConfig("x"), every=2, action=action)
    gate = ForgettingGate(config, Scripted(*values), folder, loop.last)
    task = make_task(StagePlan("clip", RECIPE, loop), materials, deepcopy(start))
    run = Loop(task, loop, folder, hooks=Hooks(check=gate.check, result=gate.result))
    return run, run.run(changes.get("pause"))


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    states = ours.state_dict(), theirs.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def lines(folder: Path) -> dict[int, dict[str, float]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in found}


def test_a_run_that_is_stopped_ends_with_the_last_state_that_passed(materials, start: CLIP, tmp_path: Path, capsys):
    run, network = gated(materials, start, tmp_path / "run", (0.8, 0.9, 0.78, 0.7))
    _, at_four = gated(materials, start, tmp_path / "four", (0.8, 0.9, 0.78), stop_after=4)
    assert run.step == 6
    assert same(network, at_four)
    assert not same(network, run.averaged())
    report = read_gate(tmp_path / "run")
    assert report == {
        "before": 0.8, "after": 0.78, "step": 4, "limit": 0.05, "passed": True, "stopped": True,
        "measured": [[0, 0.8], [2, 0.9], [4, 0.78], [6, 0.7]],
    }  # fmt: skip
    assert {
        step: line["zero_shot_top1"] for step, line in lines(tmp_path / "run").items() if step != 3
    } == pytest.approx({0: 0.8, 2: 0.9, 4: 0.78, 6: 0.7})
    assert "clip_loss" in lines(tmp_path / "run")[6]
    said = [line for line in capsys.readouterr().err.splitlines() if "zero-shot top-1" in line and "run: " in line]
    assert said == [
        "run: zero-shot top-1 is 0.800 before the first step",
        "run: zero-shot top-1 fell from 0.800 to 0.700 at step 6, by more than 0.05: stopped, with the model of step "
        "4, the last to pass (0.780)",
    ]


def test_with_action_warn_a_fall_is_printed_once_and_the_run_goes_on(materials, start: CLIP, tmp_path: Path, capsys):
    run, network = gated(materials, start, tmp_path, (0.8, 0.7, 0.6, 0.8, 0.79), action="warn")
    assert run.step == 8
    assert same(network, run.averaged())
    said = [line for line in capsys.readouterr().err.splitlines() if "zero-shot" in line]
    assert len(said) == 3
    assert "fell from 0.800 to 0.700 at step 2, by more than 0.05: lower recipe.learning_rate" in said[1]
    assert "is 0.790 after the last step, 0.800 before" in said[2]
    assert not (tmp_path / PASSED_FOLDER).exists()


def test_the_gate_changes_nothing_of_a_run_that_passes(materials: Materials, start: CLIP, tmp_path: Path):
    _, network = gated(materials, start, tmp_path / "gated", (0.8,) * 5)
    task = make_task(StagePlan("clip", RECIPE, LOOP), materials, deepcopy(start))
    (tmp_path / "free").mkdir()
    assert same(network, Loop(task, LOOP, tmp_path / "free").run())


@pytest.mark.parametrize("pause", [1, 3, 5])
def test_a_gated_run_that_is_resumed_is_the_run_in_one(pause: int, materials, start: CLIP, tmp_path: Path):
    values = (0.8, 0.9, 0.78, 0.7)
    _, whole = gated(materials, start, tmp_path / "whole", values)
    gated(materials, start, tmp_path / "parts", values, pause=pause)
    _, parts = gated(materials, start, tmp_path / "parts", values[pause // 2 + 1 :])
    assert same(parts, whole)
    assert read_gate(tmp_path / "parts") == read_gate(tmp_path / "whole")


def test_a_stopped_run_that_is_resumed_stays_stopped(materials: Materials, start: CLIP, tmp_path: Path):
    _, first = gated(materials, start, tmp_path, (0.8, 0.7), checkpoint_every=2)
    run, second = gated(materials, start, tmp_path, (), checkpoint_every=2)
    assert run.step == 2
    assert same(first, second)
    assert same(second, start)


def test_what_was_measured_after_the_checkpoint_is_forgotten(materials: Materials, start: CLIP, tmp_path: Path):
    gated(materials, start, tmp_path, (0.8, 0.79, 0.78), pause=4)
    (tmp_path / CHECKPOINT).unlink()
    _, _ = gated(materials, start, tmp_path, (0.8, 0.77, 0.76, 0.75, 0.75))
    assert read_gate(tmp_path)["measured"] == [[0, 0.8], [2, 0.77], [4, 0.76], [6, 0.75], [8, 0.75]]
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_loss_of_nan_is_not_reported_as_a_fall(materials: Materials, start: CLIP, tmp_path: Path, capsys):
    broken = deepcopy(start)
    with torch.no_grad():
        broken.log_scale.fill_(math.nan)
    with pytest.raises(TrainingError, match="infinite or NaN at step 1"):
        gated(materials, broken, tmp_path, (1.0, math.nan))
    assert "fell" not in capsys.readouterr().err


def command_line(folder: Path, colours: Path, start: CLIP, materials: Materials, **changes: Any) -> list[str]:
    start.save_pretrained(folder / "start")
    materials.tokenizer.save(folder / "start")
    held_out = {"source": str(colours), "captions": ["a photo of a {label}"], "group": "label"}
    values = {
        "stage": "clip",
        "source": {"source": str(colours), "captions": ["{file_name}"]},
        "gate": {"source": held_out, "every": 2, **changes.pop("gate", {})},
        "recipe": {"image_size": 16, "token_table": False, "text": "bag", **changes},
        "loop": vars(LOOP),
    }
    (folder / "clip.yaml").write_text(yaml.safe_dump(values))
    given = ["train", "clip", str(folder / "clip.yaml"), "--from", str(folder / "start")]
    return [*given, "--out", str(folder / "run"), "--json"]


def test_the_command_keeps_the_start_where_every_step_forgets(materials, start: CLIP, colours: Path, tmp_path, capsys):
    assert command(command_line(tmp_path, colours, start, materials, learning_rate=3.0)) == 0
    output = capsys.readouterr()
    figures = json.loads(output.out)["stages"]["clip"]
    assert figures["steps"] == figures["gate"]["step"] == 0
    assert figures["gate"]["stopped"] is True
    assert figures["gate"]["before"] == figures["gate"]["after"] == 1.0
    assert figures["metrics"]["zero_shot_top1"] < 0.95
    assert "stopped, with the model of step 0, the last to pass (1.000)" in output.err
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run/model", "start"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "run" / PASSED_FOLDER).exists()
    assert (
        command([*command_line(tmp_path, colours, start, materials)[:3], "--out", str(tmp_path / "run"), "--resume"])
        == 0
    )


def test_the_command_warns_and_goes_on(materials: Materials, start: CLIP, colours: Path, tmp_path: Path, capsys):
    given = command_line(tmp_path, colours, start, materials, learning_rate=3.0, gate={"action": "warn"})
    assert command(given) == 0
    output = capsys.readouterr()
    figures = json.loads(output.out)["stages"]["clip"]
    assert (figures["steps"], figures["gate"]["passed"], figures["gate"]["stopped"]) == (8, False, False)
    assert "lower recipe.learning_rate" in output.err


def test_a_gentle_run_passes(materials: Materials, start: CLIP, colours: Path, tmp_path: Path, capsys):
    assert command(command_line(tmp_path, colours, start, materials, learning_rate=1e-6)) == 0
    figures = json.loads(capsys.readouterr().out)["stages"]["clip"]
    assert (figures["steps"], figures["gate"]["passed"], figures["gate"]["stopped"]) == (8, True, False)
    assert figures["metrics"]["zero_shot_top1"] == figures["gate"]["after"] == 1.0
