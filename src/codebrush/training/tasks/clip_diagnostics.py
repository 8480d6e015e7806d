"""Reports common faults of training a CLIP on small batches and few pictures, each in one line with the remedy."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from codebrush.models.clip import MAX_LOGIT_SCALE

NEAR = 0.02  # a loss within this share of that of guessing counts as equal to it
CLASHING = 0.2  # of a batch, above which it is reported
AT_CLAMP = 0.999  # of the largest scale, above which it counts as clamped


def clashing_share(tokens: np.ndarray, groups: np.ndarray) -> float:
    """Share of the rows of a batch whose caption also belongs to another group, so that the loss separates equal texts.

    `tokens` is (B, T), `groups` (B,).
    """
    _, text = np.unique(tokens, axis=0, return_inverse=True)  # (B,) which caption
    pairs = np.unique(np.stack([text.reshape(-1), groups]), axis=1)  # (2, P) each caption with each of its groups
    return float((np.bincount(pairs[0])[text.reshape(-1)] > 1).mean())


def guessing_loss(batch_size: int, loss: Literal["softmax", "sigmoid"]) -> float:
    """The lowest loss of a CLIP that cannot tell rows apart: ln B, or with the sigmoid loss about 1 + ln B."""
    chance = 1 / batch_size
    if loss == "softmax" or batch_size == 1:
        return -math.log(chance)
    return -math.log(chance) - (batch_size - 1) * math.log1p(-chance)


@dataclass
class CLIPDiagnostics:
    """Checks every line of the log, and reports each fault once.

    `examples` and `batch_size` count rows over all processes, including those of a replayed set; `warmup` is in steps.
    A loss or temperature counts as stuck after `patience` lines. `texts` is the number of negatives of each picture
    beside those of its batch. Settings of a recipe are named only if the run is `by_recipe`.
    """

    batch_size: int
    examples: int
    loss: Literal["softmax", "sigmoid"] = "softmax"
    warmup: int = 0
    patience: int = 5
    texts: int = 0
    by_recipe: bool = True
    _losses: deque[float] = field(init=False)
    _scales: deque[float] = field(init=False)
    _reported: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._losses, self._scales = deque(maxlen=self.patience), deque(maxlen=self.patience)

    def remarks(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What to report about the log's line at `step`; step 0 has no values."""
        if step > self.warmup and "clip_loss" in values:
            self._losses.append(values["clip_loss"])
            self._scales.append(values["logit_scale"])
        found = dict(self._found(step, values))
        new = [line for kind, line in found.items() if kind not in self._reported]
        self._reported |= found.keys()
        return new

    def _found(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if self.examples < 2 * self.batch_size:
            yield (
                "examples",
                f"{self.examples} pictures are fewer than two batches of {self.batch_size}: add pictures"
                + (", or lower loop.batch_size" if self.by_recipe else ""),
            )
        sides = (self.batch_size + self.texts, self.batch_size)
        guess, patient = sum(guessing_loss(side, self.loss) for side in sides) / 2, len(self._losses) == self.patience
        if patient and all(abs(loss - guess) <= NEAR * guess for loss in self._losses):
            yield (
                "stuck",
                f"the loss is stuck at {guess:.2f} up to step {step}, that of a guess among {sides[0]}: "
                + ("raise recipe.learning_rate or loop.batch_size, and " if self.by_recipe else "")
                + "check that the captions fit their pictures",
            )
        if patient and min(self._scales) >= AT_CLAMP * MAX_LOGIT_SCALE:
            yield (
                "clamp",
                f"the temperature is at its clamp (logit_scale {MAX_LOGIT_SCALE:.0f}) at step {step}: "
                + ("lower recipe.learning_rate, or add pictures" if self.by_recipe else "add pictures"),
            )
        if (share := values.get("clashing", 0.0)) > CLASHING:
            yield (
                "clashing",
                f"{share:.0%} of a batch have the caption of another group: name "
                + ("source.group (--group)" if self.by_recipe else "--group")
                + ", a column that is equal where captions mean the same",
            )
