"""The training loop that every stage runs: precision, devices, checkpoints, averaged weights, logs. It knows no model.

Everything random in step s is drawn from streams seeded by (seed, s), and the rows of step s follow from
(seed, epoch) alone. A checkpoint therefore needs no generator state and no data position, only the step: a run that was
killed and resumed goes through the same numbers as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from codebrush.errors import TrainingError
from codebrush.models.precision import autocast
from codebrush.process_memory import keep_freed_memory, trim_memory
from codebrush.training.engine.checkpoints import Checkpoints
from codebrush.training.engine.compiling import check_compiler, compile_errors, compile_network
from codebrush.training.engine.ema import EMA
from codebrush.training.engine.fabric import Fabric, launch
from codebrush.training.engine.interrupts import interrupts_held
from codebrush.training.engine.learning_rate import cosine_schedule
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.non_finite import (
    HOPELESS,
    STOPPED,
    LossDiverged,
    Undo,
    all_finite,
    gradients,
    hopeless,
)
from codebrush.training.engine.parts import cut
from codebrush.training.engine.recompute import InPieces, keep_all, recompute_blocks
from codebrush.training.engine.reporting import Reporter
from codebrush.training.engine.rows import ShuffledRows, step_rng
from codebrush.training.engine.sharding import (
    SHARDED,
    Outline,
    average_gradients,
    clip_gradients,
    here,
    shard,
)
from codebrush.training.engine.task import ComparesRows, Hooks, Objective, TrainingTask, Verdict

SAID, SAID_AGAIN = 3, 100  # steps left out that are said one by one; and then each so many


class Loop:
    """Runs a task from its last checkpoint in `folder` to the last step.

    `fabric` is the result of `launch`, if that was called already; `saved` is called when a checkpoint has been
    written.
    """

    def __init__(
        self,
        task: TrainingTask,
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
        if self.fabric.device.type == "cpu":
            keep_freed_memory()
        self.saved = saved
        self.reporter = Reporter(folder, config.steps, enabled=self.fabric.is_global_zero)
        self.step, self.stopped, self.good = 0, False, 0
        self.left_out: list[int] = []  # steps with an infinite or NaN loss
        self.result = next(iter(task.networks))
        self.plain = dict(task.networks)  # as they were before any wrapper
        self.rows = self.hooks.rows or ShuffledRows(task.examples, config.batch_size, config.seed).of_step
        self.ema = EMA(self.plain[self.result], config.ema_decay)
        self.prepared = False
        rank, world = self.fabric.global_rank, self.fabric.world_size
        self.sharded = config.strategy == SHARDED and world > 1
        # of the equal parts of a step's rows, those that this process runs; networks cut what compares rows
        self.count = world if isinstance(task, ComparesRows) else world * config.accumulate
        self.numbers = range(rank, self.count, world)

    def run(self, stop_after: int | None = None, until: float | None = None) -> nn.Module:
        """Train and return the first network with its averaged weights, in eval mode.

        With `stop_after` this call ends at that step, and the run can be resumed later. `until` is the time of
        `time.monotonic` after which no step begins. The hooks may end the run earlier, and with another network.

        Raises:
            LossDiverged: if the loss becomes infinite or NaN.
            TrainingError: if a checkpoint cannot be read or written.
            KeyboardInterrupt: after Ctrl-C, when the step has ended and is saved.
        """
        self._prepare()
        last = min(self.config.steps, stop_after or self.config.last)
        with ThreadPoolExecutor(1) as loader, self.reporter, interrupts_held() as interrupted:
            self.reporter.resume_at(self.step)
            ready = loader.submit(self._load, self.step)
            self._begin()
            while self.step < last and not self.stopped:
                asked = time.monotonic()
                batch = ready.result()
                self.reporter.waited(time.monotonic() - asked)
                ready = loader.submit(self._load, self.step + 1)
                self._train_step(batch)
                self._after_step(last, until)
                if self._anywhere(interrupted()):
                    self.save()
                    raise KeyboardInterrupt
        trim_memory()
        return self.averaged() if self.hooks.result is None else self.hooks.result(self.averaged())

    def time_steps(self, warm: int, timed: int, most: float = math.inf) -> float:
        """Seconds per step, averaged over `timed` steps after `warm` untimed ones; nothing is logged or saved.

        After `most` seconds no step begins, and the first ones count where there are no others.
        """
        self._prepare()
        ends = [time.monotonic()]
        while len(ends) <= warm + timed and (len(ends) == 1 or ends[-1] - ends[0] < most):
            self._train_step(self._load(len(ends) - 1))
            ends.append(time.monotonic())
        first = min(warm, len(ends) - 2)
        return (ends[-1] - ends[first]) / (len(ends) - 1 - first)

    def averaged(self) -> nn.Module:
        """The first network with its averaged weights, detached from the run. Where weights are sharded all processes
        must call this."""
        network = self.plain[self.result]
        if self.sharded:
            return self.outline.fill(network, self.ema.values).eval()
        return keep_all(self.ema.network(network)).eval()

    def _prepare(self) -> None:
        if self.prepared:
            return
        self.prepared = True
        if self.config.compile:
            check_compiler(self.fabric.device)
        orders = {name: self._set_up(name, network) for name, network in self.plain.items()}
        for network in self.task.frozen:
            network.to(self.fabric.device).requires_grad_(False).eval()
        self.ema.to(self.fabric.device)
        self.checkpoints = Checkpoints(self.folder, self.fabric, self.plain, self.task.optimizers, orders, self.ema)
        if (state := self.checkpoints.load()) is not None:
            self.step, self.left_out = state
            self.good = self.step
        if self.step > self.config.steps:
            path = self.checkpoints.latest
            raise TrainingError(f"{path} is at step {self.step}, beyond the {self.config.steps} of this run")

    def _set_up(self, name: str, network: nn.Module) -> list[str]:
        """Wrap a network and its optimizer for the devices; returns the names of the weights as the optimizer numbers
        them, if it will number them in another order."""
        optimizer, order = self.task.optimizers[name], []
        if self.sharded and name == self.result:
            self.outline = Outline(network.to(self.fabric.device))
        if self.config.checkpoint_activations:
            recompute_blocks(network)
        cut = self.config.accumulate > 1 and isinstance(self.task, ComparesRows)
        wrapped = InPieces(network, self.config.accumulate) if cut else network
        if self.sharded:
            order = shard(network.to(self.fabric.device), optimizer, self.fabric.device)
            if name == self.result:
                self.ema = EMA(network, self.config.ema_decay)
        else:
            wrapped, optimizer = self.fabric.setup(wrapped, optimizer)
        self.task.networks[name], self.task.optimizers[name] = wrapped, optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if self.config.compile:
            compile_network(network)
        return order

    def _begin(self) -> None:
        """Check and remark on the network before the first step."""
        if self._check():
            self.reporter.log(self.step, self._means())
        self._remark({})

    def _load(self, step: int) -> list[dict[str, Tensor]]:
        """The batch of this process, cut into as many parts as it is run in."""
        rank = self.fabric.global_rank
        rows = self.rows(step)[rank :: self.fabric.world_size]
        if self.hooks.ready is not None:
            rows = self.hooks.ready(rows)
        batch = self.task.batch(rows, step_rng(self.config.seed, step, 1 + rank))
        return cut(batch, len(self.numbers))

    def _train_step(self, batches: list[dict[str, Tensor]]) -> None:
        factor = cosine_schedule(self.step, self.config.steps, self.config.warmup_steps)
        for network in self.task.networks.values():
            network.train()
        with compile_errors(self.config.compile):
            self._learn(batches, factor)
        self.step += 1
        self.reporter.learning_rate = factor

    def _learn(self, batches: list[dict[str, Tensor]], factor: float) -> None:
        """Let all networks learn from the batches of a step, with `factor` on their learning rates."""
        parts = [self._part(number, batch) for number, batch in zip(self.numbers, batches, strict=True)]
        undo = Undo(self.plain, self.task.optimizers) if self.config.on_nan == "skip" else None
        found: dict[str, list[Tensor]] = {}
        while (name := self._add_gradients(parts, found)) is not None:
            if undo is not None and self._is_broken(name, found):
                undo()
                self._leave_out()
                break
            self._update(name, factor)
        else:
            self.ema.update(self.plain[self.result], self.step + 1)
            for value_name, values in found.items():
                for value in values:
                    self.reporter.add(value_name, value, self.step + 1)

    def _is_broken(self, name: str, found: Mapping[str, Sequence[Tensor]]) -> bool:
        """Whether a value that was found, or a gradient of the network of that name, is infinite or NaN anywhere."""
        values = (value for values in found.values() for value in values)
        return self._anywhere(not all_finite([*values, *gradients(self.plain[name])]))

    def _leave_out(self) -> None:
        self.left_out.append(self.step + 1)
        if hopeless(self.left_out):
            raise self._diverged(self.step + 1, HOPELESS)
        if (count := len(self.left_out)) <= SAID or count % SAID_AGAIN == 0:
            self.reporter.say(
                f"the loss is infinite or NaN at step {self.step + 1}, which is left out ({count} so far)"
            )

    def _diverged(self, step: int, hint: str) -> LossDiverged:
        return LossDiverged(self.result, step, self.checkpoints.latest, self.good, hint)

    def _part(self, number: int, batch: dict[str, Tensor]) -> Iterator[Objective]:
        """The objectives of the part of the step's rows with that number."""
        torch.manual_seed(int(step_rng(self.config.seed, self.step, -1 - number & 0xFFFF).integers(2**62)))
        batch = {name: tensor.to(self.fabric.device, non_blocking=True) for name, tensor in batch.items()}
        yield from self.task.objectives(batch, self.step)

    def _add_gradients(self, parts: list[Iterator[Objective]], found: dict[str, list[Tensor]]) -> str | None:
        """Take the next objective of each part, and add up their gradients, and their values to `found`; returns the
        network's name, or None if there is none left."""
        name = None
        for part in parts:
            with ExitStack() as waiting:  # processes exchange gradients once, at the last part
                for network in self.task.networks.values():
                    if part is not parts[-1] and not self.sharded:  # whole gradients of sharded weights take room
                        waiting.enter_context(self.fabric.no_backward_sync(network))  # pyright: ignore
                if (objective := self._next(part)) is None:
                    return None
                if name is None:
                    self.task.optimizers[objective.network].zero_grad()
                name = objective.network
                self.fabric.backward(objective.loss / len(parts))
            for value_name, value in {f"{name}_loss": objective.loss, **objective.metrics}.items():
                found.setdefault(value_name, []).append(value.detach())
        if name is not None and self.sharded:
            average_gradients(self.plain[name])
        if name is not None and self.config.clip_norm:
            norm = self._clip(name)
            if norm is not None:
                found[f"{name}_gradient"] = [norm]
        return name

    def _clip(self, name: str) -> Tensor | None:
        """Clip the gradients of a network; returns their norm before."""
        if self.sharded:
            return clip_gradients(self.plain[name], self.config.clip_norm)
        return self.fabric.clip_gradients(
            self.task.networks[name],
            self.task.optimizers[name],
            max_norm=self.config.clip_norm,
            error_if_nonfinite=False,  # pyright: ignore
        )

    def _update(self, name: str, factor: float) -> None:
        """Take a step of the optimizer of a network, with `factor` on its learning rates."""
        optimizer = self.task.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()

    def _next(self, objectives: Iterator[Objective]) -> Objective | None:
        with autocast(self.config.precision, self.fabric.device):
            return next(objectives, None)

    def _after_step(self, last: int, until: float | None) -> None:
        config, step = self.config, self.step
        measured = self._check()
        late = until is not None and self._anywhere(time.monotonic() >= until)
        saving = step % config.checkpoint_every == 0 or step == last or late
        if step % config.log_every == 0 or saving or measured:  # nothing is saved that was not checked
            values = self._means()
            self.reporter.log(step, values)
            if not all(math.isfinite(value) for value in values.values()):
                raise self._diverged(self._earliest(self.reporter.broken_at or step), STOPPED)
            self._remark(values)
        if config.preview_every and (step % config.preview_every == 0 or step == config.steps):
            first = self.fabric.is_global_zero
            network = self.averaged() if first or self.sharded else None
            picture = self.task.preview(network) if first and network is not None else None
            if picture is not None:
                self.reporter.preview(step, picture)
        if saving:
            self.save()
        self.stopped |= late

    def _check(self) -> bool:
        """Let the hooks check the network, in the first process for all; returns whether there is a value to log."""
        if self.hooks.check is None:
            return False
        verdict = self._verdict(self.hooks.check)
        self.stopped |= verdict.stop
        for line in verdict.lines:
            self.reporter.say(line)
        for name in verdict.cures:
            self.hooks.cure(name)
        for name, value in verdict.values.items():
            self.reporter.add(name, torch.tensor(value, dtype=torch.float64))
        return bool(verdict.values)

    def _verdict(self, check: Callable[[int, Callable[[], nn.Module]], Verdict]) -> Verdict:
        """What `check` finds in the first process. The others wait for it, or help it to put sharded weights together
        when it asks for the network."""

        def network() -> nn.Module:
            if self.sharded:
                self.fabric.broadcast(None)
            return self.averaged()

        if self.fabric.is_global_zero:
            return self.fabric.broadcast(check(self.step, network))
        while (verdict := self.fabric.broadcast(None)) is None:
            self.averaged()
        return verdict

    def _remark(self, values: Mapping[str, float]) -> None:
        for line in self.hooks.remarks(self.step, values) if self.hooks.remarks else ():
            self.reporter.say(line)

    def _means(self) -> dict[str, float]:
        """The means of the reported values since the last line of the log, over all processes."""
        means = self.reporter.take_means()
        if self.fabric.world_size == 1 or not means:
            return means
        here = torch.tensor(list(means.values()), device=self.fabric.device)
        return dict(zip(means, map(float, self.fabric.all_reduce(here, reduce_op="mean")), strict=True))

    def _anywhere(self, here: bool) -> bool:
        """Whether `here` is true in any process: all must stop at the same step, or the others would wait forever."""
        if self.fabric.world_size == 1:
            return here
        count = torch.tensor(float(here), device=self.fabric.device)
        return bool(self.fabric.all_reduce(count, reduce_op="sum"))

    def _earliest(self, step: int) -> int:
        """The lowest of the steps that the processes give."""
        if self.fabric.world_size == 1:
            return step
        return int(self.fabric.all_gather(torch.tensor(step, device=self.fabric.device)).min())  # pyright: ignore

    def save(self) -> None:
        """Write a checkpoint, which then takes the place of the old one; raises LossDiverged for broken weights."""
        weights = (weight for network in self.plain.values() for weight in network.parameters())
        if self._anywhere(not all_finite(map(here, weights))):
            raise self._diverged(self.step, STOPPED)
        self.checkpoints.save(self.step, self.left_out)
        self.good = self.step
        if self.saved is not None:
            self.saved()
        self.fabric.barrier()
