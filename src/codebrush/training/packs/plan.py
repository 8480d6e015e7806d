"""Chooses the size and the number of steps of a stage for a time budget, from a few timed steps on this machine."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.guards import LOOKED_AT
from codebrush.training.packs.budget import spell_seconds
from codebrush.training.packs.request import PackRequest
from codebrush.training.stage import ModelSize

WARM_STEPS, TIMED_STEPS = 2, 3
TIMING_SHARE = 0.1  # of the seconds of a stage, after which the timing of a size ends
GUARDED = 0.05  # of the time of a stage, at most, goes into looking whether it goes wrong
PLANNED = 0.95  # of the seconds of a stage are planned for, so that steps a little slower than timed fit as well


class Pace(NamedTuple):
    """How long the smallest size of a stage takes: seconds of a step, its pictures, how many it must see at least, and
    how many if it began from nothing."""

    seconds: float
    batch_size: int
    least: int
    fresh: int

    def seen(self, seconds: float) -> int:
        """The pictures that it sees in `seconds`."""
        return int(PLANNED * seconds / self.seconds) * self.batch_size

    def lack(self, seconds: float, as_fresh: bool = False) -> float:
        """How many times too few they are, `as_fresh` for one from nothing; 1 or less if they are enough."""
        return (self.fresh if as_fresh else self.least) / max(1, self.seen(seconds))

    @property
    def needs(self) -> float:
        """The seconds that are enough."""
        return self.seconds * math.ceil(self.least / self.batch_size)


def choose(
    candidates: Sequence[ModelSize], seconds: float, time_steps: Callable[[ModelSize], float]
) -> tuple[ModelSize, int, float]:
    """The largest size that sees enough pictures within `seconds`, its number of steps, and its seconds a step.

    `time_steps` trains a throw-away network of a size for a few steps and returns the seconds of one; the time that
    takes is part of `seconds`. A larger size is tried only if the one before had time to spare. There may be
    time for no step at all.
    """
    best: tuple[ModelSize, int, float] | None = None
    started = time.monotonic()
    for size in candidates:
        per_step = time_steps(size)
        left = max(0.0, PLANNED * seconds - (time.monotonic() - started))
        steps = int(left / per_step)
        if best is not None and steps * size.batch_size < size.examples:
            best = best[0], int(left / best[2]), best[2]
            break
        best = size, steps, per_step
        if steps * size.batch_size < 2 * size.examples:
            break
    assert best is not None
    return best


def too_short(budget: float, left: float, pace: Pace, seconds: float, what: str) -> str:
    """A line that refuses a `budget` in which `what` has too little time in the `seconds` that are its share of what is
    `left`, with one that is enough."""
    wanted = budget - left + (left if seconds else 1) * pace.needs / PLANNED / (seconds or 1)
    return (
        f"--budget {spell_seconds(budget)} is too short: {left:.0f} s of it are left for training, and its {what} "
        f"needs {spell_seconds(pace.needs / PLANNED)} on this machine beside the other stages: "
        f"give --budget {spell_seconds(1.2 * wanted)} or more"
    )


def guarded_apart(held_out: int, batch_size: int) -> int:
    """The least number of steps between two looks at a network that keep them to GUARDED of the time: at the pictures
    that are held out and as many others, or at LOOKED_AT. A picture takes a third of what it takes to train on it."""
    measured = 2 * held_out or LOOKED_AT
    return math.ceil(measured / (3 * batch_size * GUARDED))


def loop_of(request: PackRequest, steps: int, batch_size: int, held_out: int, previews: bool) -> LoopConfig:
    """The settings of a stage within a budget, which draws previews on the way if asked."""
    every = max(1, steps // 20)
    loop = LoopConfig(
        steps=steps,
        batch_size=batch_size,
        seed=request.seed,
        warmup=max(1, min(100, steps // 10)),
        ema_decay=0.999 if steps > 5000 else 0.99 if steps > 300 else 0.9,
        log_every=min(50, every),
        checkpoint_every=min(500, every),
        on_nan=request.on_nan or "skip",
        guard_every=max(10, guarded_apart(held_out, batch_size), min(250, every)),
        held_out=held_out,
        preview_every=max(1, steps // 5) if previews else 0,  # each takes as long as several steps
    )
    return loop.with_threads(request.threads)
