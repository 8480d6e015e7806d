"""A real process is killed in the middle of a training run; resumed, it ends at the same bits as one left alone."""

import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from codebrush.cli.main import run as command
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.reporting import METRICS

LOOP = {"batch_size": 4, "warmup": 2, "log_every": 2, "checkpoint_every": 3, "preview_every": 0, "threads": 1}
AUGMENTATION = {"shift": 0.1, "zoom": 0.1, "turn": 10, "mirror": 0.5}
RECIPES: dict[str, dict[str, Any]] = {
    # 512 latents for k-means, 64 a step: collected until step 8; the discriminator joins in after step 12
    "vqgan": {
        "stage": "vqgan",
        "recipe": {
            "image_size": 16, "channels": 8, "channel_multipliers": [1, 1, 2], "norm_groups": 4, "latent_channels": 8,
            "code_dim": 4, "codebook_size": 64, "perceptual": 0, "adversarial_from": 0.6, "discriminator_channels": 8,
            "discriminator_layers": 1, "augmentation": AUGMENTATION,
        },
        "loop": {"steps": 20, **LOOP},
    },
    "clip": {
        "stage": "clip",
        "recipe": {
            "image_size": 32, "image": "resnet", "width": 8, "blocks": [1, 1, 1, 1], "heads": 2, "text_width": 16,
            "text_layers": 1, "text_heads": 2, "embed_dim": 8, "token_table": False, "dropout": 0.1,
            "augmentation": AUGMENTATION,
        },
        "loop": {"steps": 8, **LOOP},
    },
    "transformer": {
        "stage": "transformer",
        "recipe": {"width": 16, "layers": 1, "heads": 2, "text_length": 4, "dropout": 0.1, "condition_dropout": 0.3},
        "loop": {"steps": 8, **LOOP},
    },
    "flow": {
        "stage": "flow",
        "recipe": {
            "width": 16, "layers": 1, "heads": 2, "stem": 8, "text_length": 4, "dropout": 0.1, "condition_dropout": 0.3,
            "image_share": 0.3, "hole_share": 0.3,
        },
        "loop": {"steps": 8, **LOOP},
    },
}  # fmt: skip
NEEDS = {"vqgan": (), "clip": (), "transformer": ("clip", "vqgan"), "flow": ("clip", "vqgan")}


@dataclass(frozen=True)
class End:
    """How a process ends: by a signal, at its n-th update of weights or its n-th new checkpoint."""

    event: str
    count: int
    by: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.by.name}-at-{self.event}-{self.count}"


def train(arguments: list[str], cache: str, end: End | None) -> None:
    """A process of its own: the command line, and perhaps the signal that ends it."""
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    if end is not None:
        happened = 0

        def count(*_: Any) -> None:
            nonlocal happened
            happened += 1
            if happened == end.count:
                os.kill(os.getpid(), end.by)

        if end.event == "update":
            register_optimizer_step_post_hook(count)
        else:  # the checkpoint is written, and about to be renamed
            sys.addaudithook(lambda name, given: count() if name == "os.rename" and CHECKPOINT in given[1] else None)
    sys.exit(command(arguments))


class Runs:
    """Runs of stages in processes of their own; those that nothing breaks are kept for all tests."""

    def __init__(self, folder: Path, shapes: Path, processes: ForkServerContext, cache: Path):
        self.folder, self.shapes, self.processes, self.cache = folder, shapes, processes, cache
        for stage, recipe in RECIPES.items():
            (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe))

    def arguments(self, stage: str, out: Path, *options: str) -> list[str]:
        """The command line that trains a stage."""
        arguments = [
            "train",
            stage,
            str(self.folder / f"{stage}.yaml"),
            "--source",
            str(self.shapes),
            "--out",
            str(out),
        ]
        for other in NEEDS[stage]:
            arguments += [f"--{other}", str(self.unbroken(other))]
        return [*arguments, "--tokenizer", "bpe", *options]

    def start(self, stage: str, out: Path, *options: str, end: End | None = None) -> int | None:
        """Train in a process; returns its exit status, negative for a signal."""
        given = (self.arguments(stage, out, *options), str(self.cache), end)
        process = self.processes.Process(target=train, args=given)
        process.start()
        process.join(300)
        return process.exitcode

    def unbroken(self, stage: str, *options: str) -> Path:
        """The folder of a run that was left alone."""
        out = self.folder / "-".join(["whole", stage, *(Path(option).name for option in options)])
        assert out.exists() or self.start(stage, out, *options) == 0
        return out

    def broken(self, stage: str, end: End, *options: str) -> Path:
        """The folder of a run that came to `end` and was resumed, without `options`."""
        out = self.folder / f"broken-{stage}-{end}"
        assert self.start(stage, out, *options, end=end) == (-signal.SIGKILL if end.by == signal.SIGKILL else 130)
        assert not (out / "model").exists()
        assert self.start(stage, out, "--resume") == 0
        return out


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, shapes: Path, processes: ForkServerContext, datasets_cache: Path
) -> Runs:
    return Runs(tmp_path_factory.mktemp("resume"), shapes, processes, datasets_cache)


def difference(ours: Any, theirs: Any, place: str = "") -> str | None:
    """Where two nested states are not the same to the last bit; None if nowhere."""
    if isinstance(ours, torch.Tensor):
        return None if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else place
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return f"{place}: {sorted(map(str, ours.keys() ^ theirs.keys()))}"
        found = (difference(ours[key], theirs[key], f"{place}/{key}") for key in ours)
    elif isinstance(ours, list | tuple):
        found = (difference(*pair, f"{place}/{index}") for index, pair in enumerate(zip(ours, theirs, strict=True)))
    else:
        return None if ours == theirs else place
    return next((each for each in found if each is not None), None)


def assert_same(ours: Path, theirs: Path) -> None:
    """The same weights and checkpoint."""
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (ours, theirs)]
    assert difference(*weights) is None
    states = [torch.load(folder / CHECKPOINT, weights_only=True) for folder in (ours, theirs)]
    assert difference(*states) is None


def log_lines(folder: Path) -> list[dict[str, float]]:
    """The log, but for how fast it went."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    speed = ("steps_per_second", "data_wait")
    return [{name: value for name, value in line.items() if name not in speed} for line in lines]


chance = random.Random(20)
VQGAN_ENDS = [
    End("update", chance.randint(1, 3)),  # before the first checkpoint
    End("update", chance.randint(5, 8)),  # while latents are collected for k-means
    End("update", chance.randint(9, 12)),  # with a codebook, before the discriminator
    End("update", 13 + 2 * chance.randint(1, 7)),  # between the updates of generator and discriminator
    End("checkpoint", chance.randint(1, 6)),  # between writing a checkpoint and putting it in its place
    End("update", chance.randint(4, 25), signal.SIGINT),
]
OTHER_ENDS = [End("update", chance.randint(4, 8)) for _ in range(3)]


def test_the_unbroken_run_passes_every_phase(runs: Runs):
    found = log_lines(runs.unbroken("vqgan"))
    assert [line["code_distance"] > 0 for line in found if line["step"] in (6, 8)] == [False, True]
    assert ["discriminator_loss" in line for line in found if line["step"] in (12, 14)] == [False, True]


@pytest.mark.parametrize(  # the fourth comes through what the third does
    "end",
    [pytest.param(end, marks=[pytest.mark.slow] * (end is VQGAN_ENDS[2]), id=str(end)) for end in VQGAN_ENDS],
)
def test_a_vqgan_ends_at_the_same_bits(end: End, runs: Runs):
    ours, theirs = runs.broken("vqgan", end), runs.unbroken("vqgan")
    assert_same(ours, theirs)
    if end.by == signal.SIGKILL:  # Ctrl-C saves a step that no line of the log ends at
        assert log_lines(ours) == log_lines(theirs)


@pytest.mark.parametrize(("stage", "end"), list(zip(("clip", "transformer", "flow"), OTHER_ENDS, strict=True)), ids=str)
def test_other_stages_end_at_the_same_bits(stage: str, end: End, runs: Runs):
    assert_same(runs.broken(stage, end), runs.unbroken(stage))


@pytest.mark.parametrize("stage", ["vqgan", "clip", "transformer"])
def test_activations_that_are_computed_again_change_no_bit(stage: str, runs: Runs, tmp_path: Path):
    recipe = {**RECIPES[stage], "loop": {**RECIPES[stage]["loop"], "checkpoint_activations": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    first, name, _, *others = runs.arguments(stage, tmp_path / "run")
    assert command([first, name, str(tmp_path / "recipe.yaml"), *others]) == 0
    assert_same(tmp_path / "run", runs.unbroken(stage))


def test_a_run_that_began_from_other_weights_remembers_them(runs: Runs):
    options = ("--from", str(runs.unbroken("clip")))
    ours, theirs = runs.broken("clip", End("update", 2), *options), runs.unbroken("clip", *options)
    assert_same(ours, theirs)
    assert difference(
        load_file(ours / "model" / "model.safetensors"),
        load_file(runs.unbroken("clip") / "model" / "model.safetensors"),
    )


def test_other_pictures_are_refused(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_shapes(tmp_path / "others", 8, size=32, seed=1, objects=1)
    out = runs.unbroken("clip")
    assert command(runs.arguments("clip", out, "--resume", "--source", str(tmp_path / "others"))) == 1
    assert f"{out} began with other pictures or captions" in capsys.readouterr().err


def test_the_comparison_sees_one_bit():
    ours = {"a": [torch.tensor([1.0, 2.0])], "step": 3}
    theirs = {"a": [torch.tensor([1.0, 2.0]).nextafter(torch.tensor(9.0))], "step": 3}
    assert difference(ours, ours) is None
    assert difference(ours, theirs) == "/a/0"
    assert difference(ours, {**ours, "step": 4}) == "/step"
    assert difference(ours, {"step": 3}) == ": ['a']"
