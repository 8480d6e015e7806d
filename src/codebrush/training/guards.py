"""Notices what goes wrong in a training while its loss looks well, says it in one line, and heals what can be healed.

A stage says what is measured of its network and which faults show in that; see `Stage.guard`. Everything is measured at
fixed steps from the weights alone, and kept in guards.json, so that a run that was stopped and resumed notices and
heals the same at the same steps.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from codebrush.errors import TrainingError
from codebrush.files import write_json
from codebrush.training.dataset import evenly
from codebrush.training.engine.rows import ShuffledRows, step_rng
from codebrush.training.engine.task import Hooks, TrainingTask, Verdict

GUARDS_FILE = "guards.json"
PATIENCE = 3  # measures in a row that must show a fault
MOST_CURES = 3  # of one fault; what the user can do is said after the first that did not help, or after the last
LOOKED_AT = 32  # pictures that are measured where none are held out
HEARD = 0.02  # share that a held-out loss must rise above its best to count as rising
GUARD_STREAM = 1 << 21  # of random numbers, away from those of steps and epochs
LATE = 1 << 30  # a step after all that a task begins with

History = Sequence[tuple[int, Mapping[str, float]]]  # steps with what was measured then


@dataclass(frozen=True)
class Fault:
    """What may go wrong: `line` says it, with the remedy, if `shows` sees it in what was measured, PATIENCE times or
    more since it was last healed.

    `cure` heals it, and `cured` says how. A `lasting` cure is no part of a checkpoint and is applied again to a resumed
    run.
    """

    name: str
    shows: Callable[[History], bool]
    line: str
    cure: Callable[[], None] | None = None
    cured: str = ""
    lasting: bool = False


@dataclass(frozen=True)
class Guard:
    """What is measured of the averaged network, and the faults that are looked for in it."""

    measure: Callable[[nn.Module], Mapping[str, float]]
    faults: Sequence[Fault]


class Guards:
    """A guard at work in a run in `folder`; `check` and `cure` are the `Hooks` of that name."""

    def __init__(self, guard: Guard, every: int, folder: Path):
        self.guard, self.every, self.folder = guard, every, folder
        self.faults = {fault.name: fault for fault in guard.faults}
        self.measured: list[tuple[int, dict[str, float]]] = []
        self.cures: list[tuple[int, str]] = []
        self.reported: list[tuple[int, str]] = []
        self._begun = False

    def check(self, step: int, network: Callable[[], nn.Module]) -> Verdict:
        """Measure the network if that is due after `step` steps, and look for faults."""
        first, self._begun = not self._begun, True
        if first and step:
            return Verdict(cures=self._resume_at(step))
        if not step or step % self.every:
            return Verdict()
        values = dict(self.guard.measure(network()))
        self.measured.append((step, values))
        lines, cures = [], []
        for fault in self._found():
            said = fault.line if self._is_hard(fault) and not self._is_told(fault) else ""
            if said:
                self.reported.append((step, fault.name))
            if fault.cure is not None and self._count(fault) < MOST_CURES:
                said = f"{said or fault.line.partition(': ')[0]}; {fault.cured}"
                self.cures.append((step, fault.name))
                cures.append(fault.name)
            lines += [f"step {step}: {said}"] if said else []
        record = {"measured": self.measured, "cures": self.cures, "reported": self.reported}
        write_json(self.folder / GUARDS_FILE, record)
        return Verdict(values, lines, cures=cures)

    def cure(self, name: str) -> None:
        """Heal a fault, in every process."""
        cure = self.faults[name].cure
        assert cure is not None
        cure()

    def _found(self) -> list[Fault]:
        return [each for each in self.faults.values() if self._since(each) >= PATIENCE and each.shows(self.measured)]

    def _is_hard(self, fault: Fault) -> bool:
        """Whether a fault that shows can be healed no more, or its last cure did not help: it shows ever since."""
        count = self._count(fault)
        return fault.cure is None or count == MOST_CURES or (count > 0 and self._since(fault) == PATIENCE)

    def _is_told(self, fault: Fault) -> bool:
        return any(name == fault.name for _, name in self.reported)

    def _count(self, fault: Fault) -> int:
        return sum(name == fault.name for _, name in self.cures)

    def _since(self, fault: Fault) -> int:
        """The number of measures since the fault was last healed, or in all."""
        last = max((step for step, name in self.cures if name == fault.name), default=-1)
        return sum(step > last for step, _ in self.measured)

    def _resume_at(self, step: int) -> list[str]:
        """Take up the record of an earlier run up to the checkpoint at `step`; returns the lasting cures in it."""
        path = self.folder / GUARDS_FILE
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name in ("measured", "cures", "reported"):
            setattr(self, name, [(at, what) for at, what in known.get(name, ()) if at <= step])
        return [name for _, name in self.cures if self.faults[name].lasting]


def lasts(values: History, name: str, wrong: Callable[[float], bool]) -> bool:
    """Whether the last PATIENCE values of `name` are all wrong."""
    last = [each[name] for _, each in values[-PATIENCE:]]
    return len(last) == PATIENCE and all(map(wrong, last))


def falls(values: History, name: str, by: float) -> bool:
    """Whether the last PATIENCE values of `name` are lower than the best before by more than `by`."""
    best = max((each[name] for _, each in values[:-PATIENCE]), default=-np.inf)
    return lasts(values, name, lambda value: value < best - by)


def learned_by_heart(values: History) -> bool:
    """Whether the held-out loss has risen above its best for PATIENCE measures, while that of trained rows fell."""
    rows = [(each["held_out_loss"], each["trained_loss"]) for _, each in values]
    best, trained = min(rows[:-PATIENCE], default=(np.inf, 0.0))
    return len(rows) > PATIENCE and all(
        held > best + HEARD * abs(best) and now < trained for held, now in rows[-PATIENCE:]
    )


def held_out_rows(total: int, count: int) -> np.ndarray:
    """The numbers of the rows, of `total`, that a run with `held_out` of `count` does not train on."""
    if 2 * count > total:
        raise TrainingError(f"loop.held_out {count} is more than half of {total} pictures: lower it, or add pictures")
    return evenly(total, count) if count else np.empty(0, np.int64)


def without_held_out(hooks: Hooks, task: TrainingTask, count: int, batch_size: int, seed: int, weights: Any) -> Hooks:
    """`hooks` with rows that leave out those that are held out.

    Raises:
        TrainingError: if the stage chooses its rows itself, or would hold out more than half of them.
    """
    if not count:
        return hooks
    if hooks.rows is not None:
        raise TrainingError("a stage that replays chooses its rows itself: take out loop.held_out, or the replay")
    kept = np.setdiff1d(np.arange(task.examples), held_out_rows(task.examples, count))
    shuffled = ShuffledRows(len(kept), batch_size, seed, weights=None if weights is None else weights[kept])
    return replace(hooks, rows=lambda step: kept[shuffled.of_step(step)])


def looked_at(total: int, held_out: int) -> np.ndarray:
    """The rows that are measured: those that are held out, or some evenly spaced ones."""
    return held_out_rows(total, held_out) if held_out else evenly(total, LOOKED_AT)


@torch.no_grad()
def loss_of(task: TrainingTask, network: nn.Module, rows: np.ndarray, batch_size: int) -> float:
    """The mean loss of `network` on rows of a task, by random numbers that are the same each time."""
    name = next(iter(task.networks))
    trained, losses = task.networks[name], []
    task.networks[name] = network
    device = next(network.parameters()).device
    try:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            torch.manual_seed(start)
            batch = task.batch(part, step_rng(0, start, GUARD_STREAM))
            given = {key: value.to(device) for key, value in batch.items()}
            losses.append((float(next(task.objectives(given, LATE)).loss), len(part)))
    finally:
        task.networks[name] = trained
    return sum(loss * count for loss, count in losses) / len(rows)


def memory_guard(task: TrainingTask, held_out: int, batch_size: int, remedy: str) -> Guard | None:
    """The guard of a generator that may learn its pictures by heart; None where no rows are held out."""
    if not held_out:
        return None
    rows = held_out_rows(task.examples, held_out)
    trained = np.setdiff1d(np.arange(task.examples), rows)
    trained = trained[evenly(len(trained), len(rows))]

    def measure(network: nn.Module) -> Mapping[str, float]:
        losses = (loss_of(task, network, each, batch_size) for each in (rows, trained))
        return dict(zip(("held_out_loss", "trained_loss"), losses, strict=True))

    line = f"the held-out loss rises while that of trained pictures falls, so they are learned by heart: {remedy}"
    return Guard(measure, [Fault("by heart", learned_by_heart, line)])


def guarded(hooks: Hooks, guard: Guard | None, every: int, folder: Path) -> Hooks:
    """`hooks` with a guard that measures each `every` steps, beside the check that they have."""
    if guard is None or not every:
        return hooks
    guards, own = Guards(guard, every, folder), hooks.check

    def check(step: int, network: Callable[[], nn.Module]) -> Verdict:
        ours = guards.check(step, network)
        theirs = Verdict() if own is None else own(step, network)
        lines = [*theirs.lines, *ours.lines]
        return Verdict({**theirs.values, **ours.values}, lines, theirs.stop, ours.cures)

    return replace(hooks, check=check, cure=guards.cure)
