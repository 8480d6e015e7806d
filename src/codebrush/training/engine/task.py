"""What the training loop needs: a task to train, and hooks that a stage may add."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        """The tensors of those rows; called in a thread, so all randomness comes from `rng`.

        Each tensor holds one entry for each row, or for each of the first rows: so the loop can cut the batch (see
        `cut`), unless the task compares rows."""
        ...

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The losses of one step, or of a part of its rows, which have the same networks in the same order. The loop
        takes an optimizer step on each before it asks for the next, and seeds the generator of torch before the
        first. It averages over parts, which have equally many rows: a mean over something else needs `mean_weights`."""
        ...

    def preview(self, network: nn.Module) -> Image.Image | None:
        """A picture that shows what the (averaged) network can do; None for one that draws nothing."""
        ...


class ComparesRows:
    """A task whose loss compares the rows of a batch with each other derives from this.

    Its batch cannot be cut into smaller ones, so that `loop.accumulate` cuts what its networks read instead; see
    `InPieces`, which also says what those may read and return.
    """


class Verdict(NamedTuple):
    """What a check of the network found: values and lines for the log, whether it ends the run, and what is to be
    healed, by name."""

    values: Mapping[str, float] = {}
    lines: Sequence[str] = ()
    stop: bool = False
    cures: Sequence[str] = ()


@dataclass(frozen=True)
class Hooks:
    """What a stage may add to the loop.

    `rows` gives the rows of a step where they are not simply shuffled epochs. `ready` reads the pictures of those that
    this process takes, and returns the rows with others in place of unreadable ones. `remarks` gives lines about a line
    of the log (step 0 has no values). `check` is called before the first step of a new or resumed run and after each
    step, with the number of steps done and a function that gives the averaged network; of several processes only the
    first calls it. `cure` heals, in every process, what `check` names. `result` gives the network that the run ends
    with, from the averaged one.
    """

    rows: Callable[[int], np.ndarray] | None = None
    ready: Callable[[np.ndarray], np.ndarray] | None = None
    remarks: Callable[[int, Mapping[str, float]], Iterable[str]] | None = None
    check: Callable[[int, Callable[[], nn.Module]], Verdict] | None = None
    cure: Callable[[str], None] = lambda name: None
    result: Callable[[nn.Module], nn.Module] | None = None
