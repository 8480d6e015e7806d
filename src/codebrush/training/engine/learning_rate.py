"""The schedule of the learning rate, a pure function of the step."""

import math


def cosine_schedule(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Factor on the learning rate at `step` of `steps`: a linear rise, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
