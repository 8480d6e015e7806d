"""Reads a --budget and splits it by the shares that the stages name in `training/tasks`. Imports nothing heavy.

A wrong budget is reported at once.
"""

import math
from collections.abc import Sequence

from codebrush.errors import UsageError

FINISH_SHARE = 0.02  # of a budget, at most, for what a stage adds to a pack beside its network
FINISH_SECONDS = 5.0  # kept back for writing the pack
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_budget(text: str) -> float:
    """Seconds of '60m', '90s', '2h' or '1.5d'; a bare number counts minutes. Raises UsageError for anything else."""
    text = text.strip().lower()
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "m")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise UsageError(f"--budget '{text}' is not a positive time: write it like 90s, 60m, 2h or 1d")
    return seconds


def stage_seconds(budget: float, spent: float, shares: Sequence[float]) -> float:
    """How long the next stage may take, of a `budget` in seconds of which `spent` are gone.

    `shares` are the weights of that stage and of those still to come (`Stage.share`). What is left, less
    FINISH_SECONDS, is split in their proportion, so that time one stage saves or overruns is passed on to the rest.
    """
    left = max(1.0, budget - spent - FINISH_SECONDS)
    return max(1.0, left * (shares[0] / sum(shares)))
