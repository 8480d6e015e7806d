"""A step with an infinite or NaN loss stops a run, or is left out as if it had not been, also across a resume."""

import json
import math
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gloo import run_together
from torch import Tensor, nn

from codebrush.cli.main import run as command
from codebrush.errors import TrainingError
from codebrush.files import held_alone
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.non_finite import MOST_IN_A_ROW
from codebrush.training.engine.sharding import here
from codebrush.training.engine.task import ComparesRows, Objective

CONFIG = LoopConfig(
    steps=12, batch_size=4, warmup=1, precision="32-true", log_every=2, checkpoint_every=4, preview_every=0,
    on_nan="skip", threads=1,
)  # fmt: skip

MICRO_VQGAN = "recipe: {image_size: 16, channels: 8, channel_multipliers: [1, 2], codebook_size: 16, perceptual: 0}\n"


class Pair:
    """A network with running statistics and one that judges it, each with an optimizer that has moments.

    The loss of `broken` at the steps `at` is NaN, or its gradient is, although the loss is not; with `part`, in that
    part of the step's rows alone.
    """

    def __init__(self, broken: str = "", at: tuple[int, ...] = (), by: str = "loss", part: int | None = None):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.networks: dict[str, nn.Module] = {"made": made, "judge": nn.Linear(2, 1)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.AdamW(network.parameters(), lr=0.01) for name, network in self.networks.items()
        }
        self.frozen: list[nn.Module] = []
        self.examples, self.broken, self.at, self.by = 10, broken, at, by
        self.part, self.begun = part, (-1, -1)  # the last step and part that has begun

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(rng.normal(0, 1, (len(rows), 2))).float()}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        last_step, last_part = self.begun
        self.begun = part = step, last_part + 1 if last_step == step else 0
        breaks = step in self.at and self.part in (None, part[1])
        x = batch["x"] * math.nan if breaks and self.by == "input" else batch["x"]
        made = self.networks["made"](x)
        losses = {"made": F.mse_loss(made, 2 * x), "judge": self.networks["judge"](made.detach()).square().mean()}
        for name, loss in losses.items():
            if breaks and name == self.broken:
                slope = sum(weight.sum() for weight in self.networks[name].parameters())
                loss = loss * math.inf if self.by == "loss" else loss + (slope - slope.detach()).abs().sqrt()
            yield Objective(name, loss, {f"{name}_mean": made.mean()})

    def preview(self, network: nn.Module) -> None:
        return None


def run(folder: Path, task: Pair, stop_after: int | None = None, **changes) -> Loop:
    folder.mkdir(exist_ok=True)
    loop = Loop(task, LoopConfig(**{**vars(CONFIG), **changes}), folder)
    loop.run(stop_after)
    return loop


def state(loop: Loop) -> list[Tensor]:
    weights = [value for network in loop.plain.values() for value in network.state_dict().values()]
    moments = [
        value
        for optimizer in loop.task.optimizers.values()
        for each in optimizer.state_dict()["state"].values()
        for value in each.values()
    ]
    return [here(value).clone() for value in (*weights, *moments, *loop.ema.values.values())]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


BROKEN = [("made", "loss"), ("judge", "loss"), ("made", "gradient"), ("judge", "gradient"), ("", "input")]


@pytest.mark.parametrize(("broken", "by"), BROKEN)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_left_out_changes_no_weight_and_no_moment(broken: str, by: str, clip_norm: float, tmp_path: Path):
    before = state(run(tmp_path / "before", Pair(), stop_after=6, clip_norm=clip_norm))
    after = run(tmp_path / "after", Pair(broken, (6,), by), stop_after=7, clip_norm=clip_norm)
    assert same(state(after), before)
    assert (after.step, after.left_out) == (7, [7])


class Compared(Pair, ComparesRows):
    """A pair whose networks read the rows of a step in parts, for one loss of all (see `InPieces`)."""


@pytest.mark.parametrize(("broken", "by"), BROKEN)
@pytest.mark.parametrize(("kind", "part"), [(Pair, 0), (Pair, 1), (Compared, None)])
def test_a_step_in_parts_is_left_out_as_a_whole(
    broken: str, by: str, kind: type[Pair], part: int | None, tmp_path: Path
):
    before = state(run(tmp_path / "before", kind(), stop_after=6, accumulate=2))
    after = run(tmp_path / "after", kind(broken, (6,), by, part), stop_after=7, accumulate=2)
    assert same(state(after), before)
    assert after.left_out == [7]


@pytest.mark.parametrize("kind", [Pair, Compared])
def test_leaving_out_changes_nothing_of_a_run_in_parts(kind: type[Pair], tmp_path: Path):
    skipping = run(tmp_path / "a", kind(), accumulate=2)
    assert same(state(skipping), state(run(tmp_path / "b", kind(), on_nan="stop", accumulate=2)))


def test_the_first_step_can_be_left_out(tmp_path: Path):
    after = run(tmp_path / "after", Pair("judge", (0,)), stop_after=1)
    fresh = Pair().networks
    for name, network in after.plain.items():
        assert all(torch.equal(value, fresh[name].state_dict()[key]) for key, value in network.state_dict().items())
    assert not any(optimizer.state_dict()["state"] for optimizer in after.task.optimizers.values())


def test_leaving_out_changes_nothing_of_a_run_without_such_steps(tmp_path: Path):
    assert same(state(run(tmp_path / "a", Pair())), state(run(tmp_path / "b", Pair(), on_nan="stop")))


def test_a_resumed_run_goes_through_the_same_bits_and_counts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ("judge", (1, 5, 6, 10))
    whole = run(tmp_path / "whole", Pair(*given))
    said = capsys.readouterr().err
    run(tmp_path / "parts", Pair(*given), stop_after=6)
    parts = run(tmp_path / "parts", Pair(*given))
    assert same(state(parts), state(whole))
    assert parts.left_out == whole.left_out == [2, 6, 7, 11]
    assert "whole: the loss is infinite or NaN at step 2, which is left out (1 so far)" in said
    assert "step 7, which is left out (3 so far)" in said
    for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line).values())


def test_too_many_in_a_row_end_the_run(tmp_path: Path):
    task, steps = Pair("made", tuple(range(5, 50))), 60
    with pytest.raises(TrainingError, match=f"at step {5 + MOST_IN_A_ROW}; .*so were the {MOST_IN_A_ROW - 1} steps"):
        run(tmp_path, task, steps=steps)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] <= 5 + MOST_IN_A_ROW


def test_a_run_that_stopped_goes_on_from_its_last_good_checkpoint(tmp_path: Path):
    given = ("made", (6,))
    with pytest.raises(
        TrainingError, match=r"made: .* at step 7; the last good checkpoint is of step 4 .*--on-nan skip"
    ):
        run(tmp_path / "stopped", Pair(*given), on_nan="stop", log_every=100)
    resumed, whole = run(tmp_path / "stopped", Pair(*given)), run(tmp_path / "whole", Pair(*given))
    assert same(state(resumed), state(whole))


def test_broken_weights_never_take_the_place_of_a_checkpoint(tmp_path: Path):
    """A gradient of NaN under a finite loss, which nothing logs, right before a checkpoint."""
    with pytest.raises(TrainingError, match="the last good checkpoint is of step 4"):
        run(tmp_path, Pair("judge", (7,), "gradient"), on_nan="stop", clip_norm=0.0)
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert checkpoint["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["network.judge"].values())


def sharded(rank: int, folder: str) -> None:
    """A step left out, for each reason; and a run with some that is resumed. In two processes with parts of weights."""
    place, given = Path(folder), {"strategy": "fsdp", "devices": 2, "accelerator": "cpu"}
    before = state(run(place / "before", Pair(), stop_after=6, **given))
    for broken, by in BROKEN:
        after = run(place / f"after-{broken}-{by}", Pair(broken, (6,), by), stop_after=7, **given)
        assert same(state(after), before), (broken, by)
        assert after.left_out == [7]
    steps = ("judge", (1, 5, 6, 10))
    whole = run(place / "whole", Pair(*steps), **given)
    run(place / "parts", Pair(*steps), stop_after=6, **given)
    parts = run(place / "parts", Pair(*steps), **given)
    assert same(state(parts), state(whole))
    assert parts.left_out == [2, 6, 7, 11]
    with pytest.raises(TrainingError, match=r"last good checkpoint is of step 4 \(.*checkpoint-0000004\)"):
        run(place / "broken", Pair("judge", (7,), "gradient"), on_nan="stop", clip_norm=0.0, **given)


def test_steps_are_left_out_where_weights_are_spread_over_processes(tmp_path: Path, processes: ForkServerContext):
    assert run_together(processes, 2, sharded, str(tmp_path)) == [0, 0]


def test_the_flag_is_kept_by_a_stopped_run_that_is_resumed(shapes: Path, tmp_path: Path):
    recipe = tmp_path / "vqgan.yaml"
    recipe.write_text(
        f"stage: vqgan\n{MICRO_VQGAN}loop: {{steps: 4, batch_size: 4, stop_after: 2, threads: 1, preview_every: 0}}\n"
    )
    given = ["train", "vqgan", str(recipe), "--source", str(shapes), "--out", str(tmp_path / "run")]
    assert command(given) == 0
    plan = tmp_path / "run" / "stage.json"
    assert json.loads(plan.read_text())["loop"]["on_nan"] == "stop"
    (tmp_path / "run" / "model").rename(tmp_path / "gone")
    assert command([*given, "--resume", "--on-nan", "skip"]) == 0
    assert json.loads(plan.read_text())["loop"]["on_nan"] == "skip"
    before = plan.read_bytes()
    assert command([*given, "--resume", "--on-nan", "stop"]) == 0  # it is done
    assert plan.read_bytes() == before


def test_a_folder_that_is_refused_keeps_its_plan(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe, plan = tmp_path / "vqgan.yaml", tmp_path / "run" / "stage.json"
    recipe.write_text(f"stage: vqgan\n{MICRO_VQGAN}loop: {{steps: 4, batch_size: 4, stop_after: 2, threads: 1}}\n")
    given = ["train", "vqgan", str(recipe), "--source", str(shapes), "--out", str(tmp_path / "run")]
    assert command(given) == 0
    (tmp_path / "run" / "model").rename(tmp_path / "gone")
    before = plan.read_bytes()
    assert command([*given, "--on-nan", "skip"]) == 1
    assert "already holds a training run" in capsys.readouterr().err
    with held_alone(tmp_path / "run"):  # by a training that goes on there
        assert command([*given, "--resume", "--on-nan", "skip"]) == 1
    assert "another process is at work" in capsys.readouterr().err
    assert plan.read_bytes() == before
