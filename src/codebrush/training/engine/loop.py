"""The one training loop: a task and a folder in, trained weights out. It knows no model.

Everything random in step s is drawn from streams seeded by (seed, s), and the rows of step s follow from
(seed, epoch) alone. A checkpoint therefore holds no generator and no data position: the step says it all, and a
run that was killed and resumed goes through the same numbers as one that was not.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.distributed import get_rank

from codebrush.errors import TrainingError
from codebrush.models.precision import autocast
from codebrush.training.engine.ema import EMA
from codebrush.training.engine.forgetting import Gate
from codebrush.training.engine.interrupts import interrupts_held
from codebrush.training.engine.optimizer import cosine_schedule
from codebrush.training.engine.reporting import Reporter
from codebrush.training.field_types import Count, Share, Weight, Whole

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class LoopConfig:
    """`batch_size` counts rows over all processes; `precision` "auto" is bf16 where the machine has it.

    `warmup` counts steps, and a quarter of the run at most. `threads` 0 leaves PyTorch's choice. `devices` and
    `nodes` above 1 run data-parallel. `stop_after` ends the run before its schedule does (0: it does not).
    """

    steps: Count
    batch_size: Count
    seed: Whole = 0
    warmup: Whole = 100
    clip_norm: Weight = 1.0
    ema_decay: Share = 0.999
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    threads: Whole = 0
    log_every: Count = 50
    checkpoint_every: Count = 500
    preview_every: Whole = 1000
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    devices: Count = 1
    nodes: Count = 1
    strategy: str = "auto"
    stop_after: Whole = 0

    @property
    def last(self) -> int:
        """The step that the run ends at."""
        return min(self.steps, self.stop_after or self.steps)

    @property
    def warmup_steps(self) -> int:
        """For how many steps the learning rate rises."""
        return min(self.warmup, max(1, self.steps // 4))


class Objective(NamedTuple):
    """One loss of a step: the loop lowers `loss` with the optimizer of the network called `network`."""

    network: str
    loss: Tensor
    metrics: dict[str, Tensor]


class Task(Protocol):
    """What the loop asks of a recipe."""

    networks: dict[str, nn.Module]  # those that are trained, by name; the first is the result
    optimizers: dict[str, torch.optim.Optimizer]  # by the same names
    frozen: list[nn.Module]  # moved to the device, never trained
    examples: int  # rows to draw from

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """The tensors of those rows; called in a thread, so all randomness comes from `rng`."""
        ...

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The losses of one step, each lowered before the next is asked for; torch's generator is seeded."""
        ...

    def preview(self, network: nn.Module) -> Image.Image | None:
        """A picture of how far the (averaged) network has come."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What a stage may add to the loop: `rows` of a step where they are not simply shuffled epochs, `remarks` on a
    line of the log (step 0 has no values), and a `gate` that may end the run early."""

    rows: Callable[[int], np.ndarray] | None = None
    remarks: Callable[[int, Mapping[str, float]], Iterable[str]] | None = None
    gate: Gate | None = None


def step_rng(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """The random stream of one step: (seed, step, stream) names it."""
    return np.random.default_rng(np.random.SeedSequence([seed, step, stream]))


def rows_of_step(examples: int, batch_size: int, seed: int, step: int, stream: int = 1 << 20) -> np.ndarray:
    """Which rows step `step` sees: consecutive stretches of one endless row of shuffled epochs, (B,) int64.

    Another `stream` shuffles otherwise.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // examples):
        order = np.random.default_rng(np.random.SeedSequence([seed, int(epoch), stream])).permutation(examples)
        inside = positions // examples == epoch
        rows[inside] = order[positions[inside] % examples]
    return rows


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or not get_rank()


def launch(config: LoopConfig) -> Fabric:
    """The devices of the config, with a process on each, met here. Raises TrainingError where they cannot be had.

    Processes that are started here begin as this one did, so nothing that they would stumble over may be written yet.
    """
    count = config.devices * config.nodes
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started not in (1, count):
        raise TrainingError(
            f"this is one of {started} processes, but the plan is for {count}: set loop.devices and loop.nodes of "
            f"every recipe to match"
        )
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            # Its own mixed precision forbids gradients that a task takes by itself; see `autocast`.
            precision="32-true",
        )
        fabric.launch()
    except Exception as error:  # each strategy, accelerator and cluster has errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"loop.accelerator '{config.accelerator}', loop.strategy '{config.strategy}' and loop.devices "
            f"{config.devices} cannot be had here: {reason}"
        ) from error
    fabric.barrier()
    return fabric


class Loop:
    """Runs a task from its last checkpoint in `folder` to the last step.

    `fabric` is what `launch` gave, if it was called already; `saved` is called when a checkpoint has been written.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        fabric: Fabric | None = None,
        saved: Callable[[], None] | None = None,
        hooks: Hooks | None = None,
    ):
        self.task, self.config, self.folder, self.hooks = task, config, folder, hooks or Hooks()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.fabric = fabric or launch(config)
        self.saved = saved
        self.reporter = Reporter(folder, config.steps, enabled=self.fabric.is_global_zero)
        self.step = 0
        self.result = next(iter(task.networks))
        self.plain = dict(task.networks)  # as they were before any wrapper
        self.ema = EMA(self.plain[self.result], config.ema_decay)

    def run(self, stop_after: int | None = None) -> nn.Module:
        """Train and return the first network with its averaged weights, in eval mode.

        A step that `stop_after` names is the last of this call: the run can be resumed later. Where a gate ends the
        run it is the last network that passed.
        """
        gate = self.hooks.gate
        self._prepare()
        last = min(self.config.steps, stop_after or self.config.last)
        with ThreadPoolExecutor(1) as loader, self.reporter, interrupts_held() as interrupted:
            self.reporter.resume_at(self.step)
            ready = loader.submit(self._load, self.step)
            self._begin()
            while self.step < last and not (gate and gate.stopped):
                batch = ready.result()
                ready = loader.submit(self._load, self.step + 1)
                self._train_step(batch)
                self._after_step(last)
                if self._anywhere(interrupted()):
                    self.save()
                    raise KeyboardInterrupt
        return gate.result(self.averaged()) if gate else self.averaged()

    def time_steps(self, warm: int, timed: int) -> float:
        """Seconds of one step, measured over `timed` steps after `warm` ones; nothing is logged or saved."""
        self._prepare()
        started = 0.0
        for step in range(warm + timed):
            if step == warm:
                started = time.monotonic()
            self._train_step(self._load(step))
        return (time.monotonic() - started) / timed

    def averaged(self) -> nn.Module:
        """The first network with its averaged weights, detached from the run."""
        return self.ema.network(self.plain[self.result]).eval()

    def _prepare(self) -> None:
        for name, network in self.plain.items():
            wrapped, optimizer = self.fabric.setup(network, self.task.optimizers[name])
            self.task.networks[name], self.task.optimizers[name] = wrapped, optimizer
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        for network in self.task.frozen:
            network.to(self.fabric.device).requires_grad_(False).eval()
        self.ema.to(self.fabric.device)
        checkpoint = self.folder / CHECKPOINT
        if checkpoint.is_file():
            self._restore(checkpoint)

    def _begin(self) -> None:
        """What is measured and said before the first step."""
        if self.hooks.gate is not None:
            self.hooks.gate.resume_at(self.step)
        if self.step == 0 and self._pass_gate():
            self.reporter.log(0)
        self._remark({})

    def _load(self, step: int) -> dict[str, Tensor]:
        config = self.config
        draw = self.hooks.rows or (lambda step: rows_of_step(self.task.examples, config.batch_size, config.seed, step))
        rows = draw(step)
        mine = rows[self.fabric.global_rank :: self.fabric.world_size]
        return self.task.batch(mine, step_rng(self.config.seed, step, 1 + self.fabric.global_rank))

    def _train_step(self, batch: dict[str, Tensor]) -> None:
        config = self.config
        factor = cosine_schedule(self.step, config.steps, config.warmup_steps)
        torch.manual_seed(int(step_rng(config.seed, self.step, -1 - self.fabric.global_rank & 0xFFFF).integers(2**62)))
        for network in self.task.networks.values():
            network.train()
        batch = {name: tensor.to(self.fabric.device, non_blocking=True) for name, tensor in batch.items()}
        objectives = self.task.objectives(batch, self.step)
        while (objective := self._next(objectives)) is not None:
            optimizer, network = (
                self.task.optimizers[objective.network],
                self.task.networks[objective.network],
            )
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.zero_grad()
            self.fabric.backward(objective.loss)
            if config.clip_norm:
                norm = self.fabric.clip_gradients(
                    network,
                    optimizer,
                    max_norm=config.clip_norm,
                    error_if_nonfinite=False,  # pyright: ignore
                )
                if norm is not None:
                    self.reporter.add(f"{objective.network}_gradient", norm)
            optimizer.step()
            self.reporter.add(f"{objective.network}_loss", objective.loss)
            for name, value in objective.metrics.items():
                self.reporter.add(name, value)
        self.step += 1
        self.ema.update(self.plain[self.result], self.step)
        self.reporter.learning_rate = factor

    def _next(self, objectives: Iterator[Objective]) -> Objective | None:
        with autocast(self.config.precision, self.fabric.device):
            return next(objectives, None)

    def _after_step(self, last: int) -> None:
        config, step = self.config, self.step
        saving = step % config.checkpoint_every == 0 or step == last
        measured = self._pass_gate()
        if step % config.log_every == 0 or saving or measured:  # what is saved has been looked at
            values = self.reporter.log(step)
            if self._anywhere(not all(np.isfinite(value) for value in values.values())):
                raise TrainingError(
                    f"the loss became infinite or no number near step {step}: lower the learning rate and run "
                    f"again from the last checkpoint"
                )
            self._remark(values)
        if config.preview_every and (step % config.preview_every == 0 or step == config.steps):
            picture = self.task.preview(self.averaged()) if self.fabric.is_global_zero else None
            if picture is not None:
                self.reporter.preview(step, picture)
        if saving:
            self.save()

    def _pass_gate(self) -> bool:
        """Measure the averaged network where it is due; the first process measures for all."""
        gate = self.hooks.gate
        if gate is None or not gate.due(self.step):
            return False
        network = self.averaged()
        top1 = self.fabric.broadcast(gate.measure(network) if self.fabric.is_global_zero else 0.0)
        if math.isfinite(top1):  # no number is a loss that became infinite, which the log tells
            for line in gate.record(self.step, top1, network):
                self.reporter.say(line)
        self.reporter.add("zero_shot_top1", torch.tensor(top1, dtype=torch.float64))
        self.fabric.barrier()  # what passed is written before anybody reads it
        return True

    def _remark(self, values: Mapping[str, float]) -> None:
        for line in self.hooks.remarks(self.step, values) if self.hooks.remarks else ():
            self.reporter.say(line)

    def _anywhere(self, here: bool) -> bool:
        """Whether `here` holds in any process; all must stop at the same step, or those left would wait for ever."""
        if self.fabric.world_size == 1:
            return here
        count = torch.tensor(float(here), device=self.fabric.device)
        return bool(self.fabric.all_reduce(count, reduce_op="sum"))

    def _own(self, name: str) -> dict[str, Tensor]:
        """What a network's state holds beside parameters and buffers: each process has its own."""
        network = self.plain[name]
        weights = (network.named_parameters, network.named_buffers)
        shared = {key for named in weights for key, _ in named(remove_duplicate=False)}
        return {key: value for key, value in network.state_dict().items() if key not in shared}

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap them."""
        state: dict[str, Any] = {"step": self.step, "ema": self.ema.values}
        for name in self.plain:
            state[f"network.{name}"] = self.task.networks[name]
            state[f"optimizer.{name}"] = self.task.optimizers[name]
            if self.fabric.world_size > 1:  # (processes, ...) each
                state[f"own.{name}"] = {key: self.fabric.all_gather(value) for key, value in self._own(name).items()}
        path = self.folder / CHECKPOINT
        try:
            self.fabric.save(f"{path}.part", state)
            if self.fabric.is_global_zero:
                os.replace(f"{path}.part", path)
        except (OSError, RuntimeError) as error:  # a full disk is the latter to the writer of the archive
            Path(f"{path}.part").unlink(missing_ok=True)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrainingError(f"{path} cannot be written ({reason}): free space there, then resume") from error
        if self.saved is not None:
            self.saved()
        self.fabric.barrier()

    def _restore(self, path: Path) -> None:
        state: dict[str, Any] = {}
        for name in self.plain:
            state[f"network.{name}"] = self.task.networks[name]
            state[f"optimizer.{name}"] = self.task.optimizers[name]
        try:
            rest = self.fabric.load(path, state, weights_only=True)
        except Exception as error:  # a truncated archive raises whatever its reader happens to
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrainingError(f"{path} cannot be read ({reason}): delete it to start the stage again") from error
        self.step = int(rest["step"])
        self.ema.load(rest["ema"])
        for name, network in self.plain.items():
            own = {key: value[self.fabric.global_rank] for key, value in rest.get(f"own.{name}", {}).items()}
            if own:
                network.load_state_dict(own, strict=False)
        if self.step > self.config.steps:
            raise TrainingError(f"{path} is at step {self.step}, beyond the {self.config.steps} of this run")
