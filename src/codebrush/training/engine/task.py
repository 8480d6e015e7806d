"""What the training loop needs: a task to train, and hooks that a stage may add."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Objective(NamedTuple):
    """One loss of a step: the loop lowers `loss` with the optimizer of the network called `network`."""

    network: str
    loss: Tensor
    metrics: dict[str, Tensor]


class TrainingTask(Protocol):
    """What the loop trains."""

    networks: dict[str, nn.Module]  # those that are trained, by name; the first is the result
    optimizers: dict[str, torch.optim.Optimizer]  # by the same names
    frozen: list[nn.Module]  # moved to the device, never trained
    examples: int  # number of rows to draw from

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """The tensors of those rows; called in a thread, so all randomness comes from `rng`."""
        ...

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The losses of one step. The loop takes an optimizer step on each before it asks for the next, and seeds the
        generator of torch before the first."""
        ...

    def preview(self, network: nn.Module) -> Image.Image | None:
        """A picture that shows what the (averaged) network can do; None for one that draws nothing."""
        ...


class Gate(Protocol):
    """Measures the averaged network now and then, and may end the run early."""

    metric: str  # the measured value's name in the log

    @property
    def stopped(self) -> bool:
        """Whether the last value ends the run."""
        ...

    def resume_at(self, step: int) -> None:
        """Go on from a checkpoint at `step`; values of later steps are forgotten."""
        ...

    def due(self, step: int) -> bool:
        """Whether to measure the network after `step` steps."""
        ...

    def measure(self, network: nn.Module, /) -> float:
        """The value of a network. Of several processes only the first is asked."""
        ...

    def record(self, step: int, value: float, network: nn.Module, /) -> list[str]:
        """Take in a finite value; returns lines for the log."""
        ...

    def result(self, network: nn.Module) -> nn.Module:
        """The network that the run ends with."""
        ...

    def close(self) -> None:
        """Called when the result is saved."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What a stage may add to the loop: the `rows` of a step where they are not simply shuffled epochs, `remarks` on a
    line of the log (step 0 has no values), and a `gate`."""

    rows: Callable[[int], np.ndarray] | None = None
    remarks: Callable[[int, Mapping[str, float]], Iterable[str]] | None = None
    gate: Gate | None = None
