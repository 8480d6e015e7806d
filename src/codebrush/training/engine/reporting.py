"""Logs a run: metrics.jsonl, TensorBoard, preview pictures, and a progress bar with rate and time left."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from codebrush.files import atomic_file

METRICS = "metrics.jsonl"
TOLD_WAIT = 0.1  # share of the time waiting for data from which the progress line tells it


class Reporter:
    """Collects values step by step and writes their means. A disabled one, of another process, writes nothing."""

    def __init__(self, folder: Path, steps: int, enabled: bool = True):
        self.folder, self.steps, self.enabled = folder, steps, enabled
        self.name = folder.name
        self.learning_rate = 1.0
        self.broken_at: int | None = None  # the first step with an infinite or NaN value in the last means
        self._found: dict[str, list[tuple[int | None, Tensor]]] = {}
        self._last_time, self._last_step = time.monotonic(), 0
        self._waited = 0.0
        self._writer: Any = None
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(self.name, total=steps, status="")

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def resume_at(self, step: int) -> None:
        """Drop what an earlier run logged after the checkpoint at `step`, from which this one continues."""
        self._last_time, self._last_step = time.monotonic(), step
        self._bar.update(self._task, completed=step)
        path = self.folder / METRICS
        if not (self.enabled and path.is_file()):
            return
        kept = [line for line in _whole_lines(path) if step and json.loads(line)["step"] <= step]
        with atomic_file(path) as part:
            part.write_text("".join(kept), encoding="utf-8")

    def add(self, name: str, value: Tensor, step: int | None = None) -> None:
        """Remember a value of a step. It is read only when the next line is written, so that a GPU need not wait."""
        self._found.setdefault(name, []).append((step, value.detach()))

    def waited(self, seconds: float) -> None:
        """Add up the time in which no step was taken, because its pictures and texts were not there yet."""
        self._waited += seconds

    def take_means(self) -> dict[str, float]:
        """The means of the values since the last call."""
        read = {name: [(step, float(value)) for step, value in found] for name, found in self._found.items()}
        self._found.clear()
        broken = [step for found in read.values() for step, value in found if step and not math.isfinite(value)]
        self.broken_at = min(broken, default=None)
        return {name: float(np.mean([value for _, value in found])) for name, found in read.items()}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line with these values."""
        now = time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        rate, wait = (step - self._last_step) / seconds, min(1.0, self._waited / seconds)
        self._last_time, self._last_step, self._waited = now, step, 0.0
        if not self.enabled:
            return
        known = {name: value for name, value in values.items() if math.isfinite(value)}  # NaN is no JSON
        line = {"step": step, **known, "schedule": self.learning_rate, "steps_per_second": round(rate, 4)}
        line["data_wait"] = round(wait, 4)
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        writer = self._tensorboard(step)
        for name, value in line.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        summary = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.endswith("_loss"))
        status = f"{summary}  {rate:.2f} steps/s"
        if wait >= TOLD_WAIT:
            status += f", {wait:.0%} of the time waiting for data"
        self._bar.update(self._task, completed=step, status=status)
        if self._bar.disable and step:
            left = (self.steps - step) / max(rate, 1e-9)
            print(f"{self.name}: step {step}/{self.steps}  {status}  {left / 60:.1f} min left", file=sys.stderr)

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        if self.enabled:
            print(f"{self.name}: {text}", file=sys.stderr)

    def preview(self, step: int, picture: Image.Image) -> None:
        """Save a picture of the network's progress as previews/<step>.png and in TensorBoard."""
        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{step:07d}.png")
        self._tensorboard(step).add_image("preview", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def _tensorboard(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        return self._writer


def _whole_lines(path: Path) -> list[str]:
    """The lines that end with a newline; a killed process may leave half a line."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
