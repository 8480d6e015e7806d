"""Keeps a CLIP in training from forgetting: measures its zero-shot accuracy on a held-out set, and may stop the run."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from codebrush.errors import DataError
from codebrush.files import atomic_file
from codebrush.models.pretrained import PretrainedModel
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, SourceConfig
from codebrush.training.engine.task import Verdict
from codebrush.training.field_types import Count, Share

GATE_FILE = "gate.json"
PASSED_FOLDER = "passed"
METRIC = "zero_shot_top1"  # in the log
BATCH = 128
ROUNDING = 1e-9  # of the difference of two shares


@dataclass(frozen=True)
class GateConfig:
    """A labelled set that training must not forget: `source` is its rows, best a held-out split.

    The classes are its groups (`source.group`, like "label"); the texts of a class are the captions that
    `source.captions` (like "a photo of a {label}") make of its rows. Top-1 accuracy is measured before the first step,
    every `every` steps and at the end. A fall by more than `limit`, a share of all pictures, ends the run with the last
    state that passed if `action` is "stop", and prints a warning if it is "warn".
    """

    source: SourceConfig
    limit: Share = 0.05
    every: Count = 100
    action: Literal["stop", "warn"] = "stop"


class ZeroShot:
    """Measures a CLIP's zero-shot top-1 accuracy on the rows of `data`; the classes are the groups of the set.

    Raises:
        DataError: if the set has fewer than two groups.
    """

    def __init__(self, data: Captioned, tokenizer: Tokenizer):
        self.data = data
        texts = dict.fromkeys(
            (int(group), caption) for row, group in enumerate(data.groups) for caption in data.captions(row)
        )
        self.classes = len(set(data.groups.tolist()))
        if self.classes < 2:
            raise DataError(f"{data.source.origin}: a gate needs two classes or more; name their column as group")
        self.tokens = tokenizer([caption for _, caption in texts], on_long="truncate")  # (texts, T)
        self.owners = torch.tensor([group for group, _ in texts])  # (texts,)

    @torch.no_grad()
    def __call__(self, clip: Any) -> float:
        """Share of pictures nearer to the mean of their class's texts than to any other's, in [0, 1]; NaN if an
        embedding is NaN."""
        device = clip.log_scale.device
        texts = torch.cat([clip.encode_text(tokens.to(device)) for tokens in self.tokens.split(BATCH)])  # (texts, E)
        sums = torch.zeros(self.classes, texts.shape[1], device=device).index_add_(0, self.owners.to(device), texts)
        means = F.normalize(sums, dim=-1)  # (classes, E)
        right = 0
        for start in range(0, len(self.data), BATCH):
            rows = np.arange(start, min(start + BATCH, len(self.data)))
            cosines = clip.encode_image(self.data.images(rows).to(device).float() / 255) @ means.T  # (B, classes)
            if cosines.isnan().any():
                return math.nan
            own = cosines.gather(1, torch.from_numpy(self.data.groups[rows]).to(device)[:, None])
            right += int(((cosines >= own).sum(1) == 1).sum())  # with another exactly as near it is wrong
        return right / len(self.data)


class ForgettingGate:
    """Compares what `measure` gives for a network during a run with its value before the first step; `check` and
    `result` are the `Hooks` of that name.

    `folder` keeps the record (gate.json) and, if a fall stops the run, the last network that passed, so that a resumed
    run goes by the same values. `last` is the run's last step.
    """

    def __init__(self, config: GateConfig, measure: Callable[[nn.Module], float], folder: Path, last: int):
        self.config, self.measure, self.folder, self.last = config, measure, folder, last
        self.measured: list[tuple[int, float]] = []
        self._begun = False

    def check(self, step: int, network: Callable[[], nn.Module]) -> Verdict:
        """Measure the network if that is due after `step` steps."""
        first, self._begun = not self._begun, True
        if first and step:
            self._resume_at(step)
        elif self.due(step) and step not in dict(self.measured):
            averaged = network()
            top1 = self.measure(averaged)
            # NaN is not recorded: the loss is NaN too, which the loop reports.
            lines = self.record(step, top1, averaged) if math.isfinite(top1) else []
            return Verdict({METRIC: top1}, lines, self.stopped)
        return Verdict(stop=self.stopped)

    def _resume_at(self, step: int) -> None:
        """Continue the record of an earlier run, without what it measured after the checkpoint at `step`."""
        known = read_gate(self.folder) or {"measured": []}
        self.measured = [(at, top1) for at, top1 in known["measured"] if at <= step]
        if self.measured:
            self._write()

    def due(self, step: int) -> bool:
        """Whether to measure the network after `step` steps."""
        return step in (0, self.last) or step % self.config.every == 0

    def passes(self, top1: float) -> bool:
        """Whether a value is no more than the limit below the first one."""
        return top1 >= self.measured[0][1] - self.config.limit - ROUNDING

    @property
    def stopped(self) -> bool:
        """Whether the last value ends the run."""
        return self.config.action == "stop" and bool(self.measured) and not self.passes(self.measured[-1][1])

    @property
    def kept(self) -> tuple[int, float]:
        """The step and value of the network that the run would end with now."""
        if not self.stopped:
            return self.measured[-1]
        return next((step, top1) for step, top1 in reversed(self.measured) if self.passes(top1))

    def record(self, step: int, top1: float, network: nn.Module) -> list[str]:
        """Take in a value and keep the network if it passes; returns lines for the log."""
        fallen = bool(self.measured) and not self.passes(self.measured[-1][1])
        self.measured.append((step, top1))
        passes = self.passes(top1)
        if passes and self.config.action == "stop":
            assert isinstance(network, PretrainedModel)
            network.save_pretrained(self.folder / PASSED_FOLDER)
        self._write()
        return self._lines(step, top1, passes, fallen)

    def result(self, network: nn.Module) -> nn.Module:
        """`network`, or the last one that passed if the gate has stopped the run. Goes by the files alone, because of
        several processes only the first has checked."""
        report = read_gate(self.folder)
        if report is None or not report["stopped"]:
            return network
        assert isinstance(network, PretrainedModel)
        return type(network).from_pretrained(self.folder / PASSED_FOLDER)

    def _lines(self, step: int, top1: float, passes: bool, fallen: bool) -> list[str]:
        before = self.measured[0][1]
        if step == 0:
            return [f"zero-shot top-1 is {top1:.3f} before the first step"]
        if not passes:
            fall = f"zero-shot top-1 fell from {before:.3f} to {top1:.3f} at step {step}, by more than"
            if self.stopped:
                at, good = self.kept
                return [
                    f"{fall} {self.config.limit}: stopped, with the model of step {at}, the last to pass ({good:.3f})"
                ]
            return [] if fallen and step != self.last else [f"{fall} {self.config.limit}: lower recipe.learning_rate"]
        return [f"zero-shot top-1 is {top1:.3f} after the last step, {before:.3f} before"] if step == self.last else []

    def _write(self) -> None:
        step, top1 = self.kept
        report = {
            "before": self.measured[0][1],
            "after": top1,
            "step": step,
            "limit": self.config.limit,
            "passed": self.passes(top1),
            "stopped": self.stopped,
            "measured": self.measured,
        }
        with atomic_file(self.folder / GATE_FILE) as part:
            part.write_text(json.dumps(report) + "\n", encoding="utf-8")


def remove_passed(folder: Path) -> None:
    """Remove the network that the gate of a run in `folder` has kept, once the run's own model is saved."""
    shutil.rmtree(folder / PASSED_FOLDER, ignore_errors=True)


def read_gate(folder: Path) -> dict[str, Any] | None:
    """The record of the gate of a run in `folder`; None if it had no gate."""
    path = folder / GATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
