"""The training loop on a task of its own: rows, random streams, precision, clipping, logs, resuming, failures."""

import json
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clocks import set_monotonic
from codebrush.errors import TrainingError
from codebrush.models.precision import autocast, has_bf16
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.compiling import has_compiler
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.rows import ShuffledRows, step_rng
from codebrush.training.engine.task import Hooks, Objective


class Line:
    """Fits y = 3 x with noise in the input; keeps what the loop hands it."""

    def __init__(self, learning_rate: float = 0.05, poison_at: int = -1):
        torch.manual_seed(0)
        self.networks: dict[str, nn.Module] = {"line": nn.Linear(1, 1)}
        self.networks["line"].register_forward_hook(self._look)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "line": torch.optim.SGD(self.networks["line"].parameters(), lr=learning_rate)
        }
        self.frozen: list[nn.Module] = []
        self.examples = 10
        self.poison_at = poison_at
        self.seen: list[list[int]] = []
        self.noise: list[float] = []
        self.dtype: torch.dtype | None = None

    def _look(self, network: nn.Module, given: tuple, made: Tensor) -> None:
        self.dtype = made.dtype

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        self.seen.append(rows.tolist())
        x = torch.from_numpy(rows / 10 + rng.normal(0, 0.01, len(rows))).float().unsqueeze(1)
        return {"x": x, "y": 3 * x}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        noise = torch.randn(batch["x"].shape)
        self.noise.append(noise.sum().item())
        made = self.networks["line"](batch["x"] + 0.01 * noise)
        loss = (made.float() - batch["y"]).square().mean()
        if step == self.poison_at:
            loss = loss * float("nan")
        yield Objective("line", loss, {"first": batch["x"][0, 0]})

    def preview(self, network: nn.Module) -> Image.Image:
        return Image.new("RGB", (4, 4), "red")


def config(steps: int = 12, **changes) -> LoopConfig:
    given = {"batch_size": 4, "warmup": 1, "precision": "32-true", "log_every": 2, "checkpoint_every": 4}
    return LoopConfig(steps=steps, **{**given, "preview_every": 0, **changes})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder: Path, task: Line | None = None, stop_after: int | None = None, **changes) -> Loop:
    folder.mkdir(exist_ok=True)
    loop = Loop(task or Line(), config(**changes), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.run(stop_after)
    return loop


def test_the_loop_shows_the_rows_in_order_and_lowers_the_loss(tmp_path: Path):
    task = Line(learning_rate=0.5)
    run(tmp_path, task, steps=120)
    rows = ShuffledRows(10, 4, 0)
    assert task.seen[:120] == [rows.of_step(step).tolist() for step in range(120)]
    assert len(set(task.noise)) == 120
    found = lines(tmp_path)
    assert found[-1]["line_loss"] < 0.05 * found[0]["line_loss"]
    assert [line["step"] for line in found] == list(range(2, 121, 2))


def test_a_line_of_the_log_is_the_mean_since_the_last(tmp_path: Path):
    run(tmp_path, steps=4)
    rows = [ShuffledRows(10, 4, 0).of_step(step) for step in range(4)]
    firsts = [(rows[s] / 10 + step_rng(0, s, 1).normal(0, 0.01, 4))[0] for s in range(4)]
    means = [np.mean(firsts[:2]), np.mean(firsts[2:])]
    assert [line["first"] for line in lines(tmp_path)] == pytest.approx(means, rel=1e-6)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_gradients_are_clipped_to_the_norm_and_not_beyond(tmp_path: Path):
    def first_move(folder: Path, clip_norm: float) -> tuple[float, float]:
        task = Line(learning_rate=1.0)
        before = torch.cat([part.detach().flatten() for part in task.networks["line"].parameters()])
        loop = run(folder, task, steps=1, clip_norm=clip_norm)
        after = torch.cat([part.detach().flatten() for part in loop.plain["line"].parameters()])
        return (after - before).norm().item(), lines(folder)[0].get("line_gradient", 0.0)

    free, _ = first_move(tmp_path / "free", 0.0)
    assert free > 0.5
    clipped, logged = first_move(tmp_path / "clipped", 0.1)
    assert clipped == pytest.approx(0.1, rel=1e-3)
    assert logged == pytest.approx(free, rel=1e-4)  # the norm before it was clipped
    loose, _ = first_move(tmp_path / "loose", 100.0)
    assert loose == pytest.approx(free, rel=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_precision_reaches_the_network_and_leaves_the_weights_alone(precision, dtype, tmp_path: Path):
    task = Line()
    loop = run(tmp_path, task, steps=2, precision=precision)
    assert task.dtype == dtype
    assert {part.dtype for part in loop.plain["line"].parameters()} == {torch.float32}


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler here")
def test_compiled_networks_learn_the_same(tmp_path: Path):
    plain = run(tmp_path / "plain", Line(), steps=6)
    compiled = run(tmp_path / "compiled", Line(), steps=6, compile=True)
    for name, weight in plain.plain["line"].state_dict().items():
        torch.testing.assert_close(compiled.plain["line"].state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    assert compiled.plain["line"]._compiled_call_impl is not None
    assert compiled.averaged()(torch.ones(1, 1)).shape == (1, 1)


def test_compiling_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"loop\.compile needs a C\+\+ compiler and there is none"):
        run(tmp_path, Line(), steps=1, compile=True, accelerator="cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_precision_is_bf16_where_the_device_has_it(device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    place = torch.device(device)
    with autocast("auto", place):
        assert torch.is_autocast_enabled(device) == has_bf16(place)
    with autocast("32-true", place):
        assert not torch.is_autocast_enabled(device)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_task_may_take_gradients_itself(precision: str, tmp_path: Path):
    class Balanced(Line):
        def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
            for network, loss, metrics in super().objectives(batch, step):
                (slope,) = torch.autograd.grad(loss, next(self.networks["line"].parameters()), retain_graph=True)
                yield Objective(network, loss * slope.norm().detach(), metrics)

    assert run(tmp_path, Balanced(), steps=2, precision=precision).step == 2


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path):
    whole = run(tmp_path / "whole", steps=11)
    run(tmp_path / "parts", steps=11, stop_after=7)
    parts = run(tmp_path / "parts", steps=11)
    assert parts.step == 11
    for ours, theirs in zip(parts.averaged().parameters(), whole.averaged().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_metrics_after_the_checkpoint_are_written_again(tmp_path: Path):
    run(tmp_path / "whole", steps=12, log_every=3)
    folder = tmp_path / "broken"
    run(folder, steps=12, log_every=3, stop_after=8)
    with (folder / "metrics.jsonl").open("a") as file:  # what a process leaves that is killed between two checkpoints
        file.write('{"step": 9, "line_loss": 77.0}\n{"step": 12, "line_lo')
    run(folder, steps=12, log_every=3)
    broken, whole = lines(folder), lines(tmp_path / "whole")
    for line in broken + whole:
        line.pop("steps_per_second")
        line.pop("data_wait")
    assert broken == whole


def test_the_log_says_which_share_of_the_time_went_into_waiting_for_data(tmp_path: Path):
    class Slow(Line):
        def __init__(self, loading: float, training: float):
            super().__init__()
            self.loading, self.training = loading, training

        def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
            time.sleep(self.loading)
            return super().batch(rows, rng)

        def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
            time.sleep(self.training)
            return super().objectives(batch, step)

    # TensorBoard is imported after the first line; the last is of two steps that take much longer than all else
    run(tmp_path / "loading", Slow(0.2, 0), steps=6)
    run(tmp_path / "training", Slow(0, 0.2), steps=6)
    assert lines(tmp_path / "loading")[-1]["data_wait"] > 0.7
    assert lines(tmp_path / "training")[-1]["data_wait"] < 0.3


def test_rows_are_made_ready_before_the_batch(tmp_path: Path):
    task, asked = Line(), []

    def ready(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return 9 - rows

    tmp_path.mkdir(exist_ok=True)
    Loop(task, config(steps=3), tmp_path, hooks=Hooks(ready=ready)).run()
    assert asked == [ShuffledRows(10, 4, 0).of_step(step).tolist() for step in range(4)]
    assert task.seen == [[9 - row for row in rows] for rows in asked]


def test_a_loss_of_nan_ends_the_run_before_it_is_saved(tmp_path: Path):
    with pytest.raises(
        TrainingError, match=r"line: .* at step 7; the last good checkpoint is of step 4 .*--on-nan skip"
    ):
        run(tmp_path, Line(poison_at=6), log_every=100)
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert checkpoint["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["ema"].values())


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    run(tmp_path, stop_after=4)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read .*delete it") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_beyond_the_run_is_refused(tmp_path: Path):
    run(tmp_path, steps=8)
    with pytest.raises(TrainingError, match="at step 8, beyond the 6"):
        run(tmp_path, steps=6)


def test_previews_come_at_their_interval_and_at_the_end(tmp_path: Path):
    run(tmp_path, steps=7, preview_every=3)
    names = [path.name for path in sorted((tmp_path / "previews").iterdir())]
    assert names == ["0000003.png", "0000006.png", "0000007.png"]


def test_timing_steps_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = Line()
    # the first step takes 9 seconds, each later one 2
    set_monotonic(monkeypatch, lambda: 7.0 * bool(task.noise) + 2.0 * len(task.noise))
    assert Loop(task, config(), tmp_path).time_steps(1, 3) == 2.0
    assert len(task.noise) == 4
    assert list(tmp_path.iterdir()) == []


class Interrupting(Line):
    """Presses Ctrl-C in the middle of a step."""

    def __init__(self, at: int, times: int = 1):
        super().__init__()
        self.at, self.times = at, times

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        yield from super().objectives(batch, step)
        for _ in range(self.times if step == self.at else 0):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_lets_the_step_end_and_saves_it(tmp_path: Path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Interrupting(at=5))
    assert torch.load(tmp_path / "broken" / CHECKPOINT, weights_only=True)["step"] == 6
    resumed = run(tmp_path / "broken")
    assert torch.equal(resumed.ema.values["weight"], whole.ema.values["weight"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupting(at=5, times=2))
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4


def test_the_loop_runs_in_a_thread(tmp_path: Path):
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(run(tmp_path, steps=3).step))
    thread.start()
    thread.join(60)
    assert done == [3]
