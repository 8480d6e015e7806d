"""The state of guidance between two steps: what is stored so that a stopped run goes on exactly."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class State:
    """All that guidance needs to go on exactly. A run folder stores the fields under these names."""

    step: int
    value: Tensor  # what is optimised: see `codebrush.generation.guided.latents`
    anchor: Tensor  # the value at the start
    optimizer: dict[str, Any] | None = None
    mean: Tensor | None = None  # running mean of the value, not yet divided by its weight
    mean_steps: int = 0
    smooth: float = math.inf  # the smoothed loss, which `patience` watches
    best: float = math.inf  # its lowest value
    best_step: int = 0
    stage: int = 0  # of growth
    finished: bool = False
    kept: Tensor | None = None  # the latents (B, d, h, w) that the scorer finds best so far; see `best_step`
    kept_steps: list[int] = field(default_factory=list)  # the step, and below the score, of each of them
    kept_scores: list[float] = field(default_factory=list)
    first_scores: list[float] = field(default_factory=list)  # of the pictures that it saw first
