"""Reads a --budget and splits it among the stages, by the shares that they name in `training/tasks`. Imports nothing
heavy.

A wrong budget is reported at once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from codebrush.errors import UsageError

FINISH_SHARE = 0.02  # of a budget, at most, for what a stage adds to a pack beside its network
ENDING_SHARE = 0.04  # of a budget, kept back for the sheets of samples and reconstructions and for writing the pack
ENDING_SECONDS = 5.0  # of those, at least
WRITING_SECONDS = 3.0  # of those, for writing the pack
MOST_FOR_FIRST = 0.6  # of what is left, for the stage that is served before the others
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Claim(NamedTuple):
    """A stage's share of a budget and, of a stage that is served before the others, the seconds that it needs. One that
    is left out gets nothing: its share goes to the others."""

    share: float
    needs: float = 0.0
    left_out: bool = False


def parse_budget(text: str, flag: str = "--budget") -> float:
    """Seconds of '60m', '90s', '2h' or '1.5d'. Raises UsageError, which names the `flag`, for anything else, also for a
    bare number."""
    text = text.strip().lower()
    if (bare := _number(text)) is not None:
        raise UsageError(
            f"{flag} {bare:g} has no unit: write {bare:g}m for minutes, {bare:g}h for hours or {bare:g}s for seconds"
        )
    number = _number(text[:-1])
    if number is None or text[-1] not in UNITS or not math.isfinite(number * UNITS[text[-1]]):
        raise UsageError(f"{flag} '{text}' is not a positive time: write it like 90s, 60m, 2h or 1d")
    return number * UNITS[text[-1]]


def _number(text: str) -> float | None:
    """The positive finite number that `text` is; None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def spell_seconds(seconds: float) -> str:
    """Seconds as --budget takes them, in whole units, rounded up: '90s', '150s', '6m', '4h'."""
    for unit, least in (("h", 3 * UNITS["h"]), ("m", 2 * UNITS["m"])):
        if seconds > least and (seconds > 5 * least or seconds % UNITS[unit] == 0):
            return f"{math.ceil(seconds / UNITS[unit])}{unit}"
    return f"{math.ceil(seconds)}s"


def seconds_left(budget: float, spent: float) -> float:
    """What is left for training, of a `budget` in seconds of which `spent` are gone; the end of it is for finishing."""
    return max(0.0, budget - spent - max(ENDING_SECONDS, ENDING_SHARE * budget))


def stage_seconds(left: float, claims: Sequence[Claim]) -> float:
    """How long the next stage may take, of `left` seconds for it and the stages still to come, whose claims these are.

    A stage that needs seconds is served first: it gets them, up to MOST_FOR_FIRST of what is left and what the stages
    that are left out would have had of the rest, or its share where that is more. The others split the rest in
    proportion to their shares. Time that one stage saves or overruns is so passed on to the rest.
    """
    if claims[0].left_out:
        return 0.0
    trained = [claim for claim in claims if not claim.left_out]
    first = sum(claim.share for claim in trained if claim.needs)
    others = sum(claim.share for claim in trained) - first
    if not first or not others:
        return left * claims[0].share / (first + others)
    most = 1 - (1 - MOST_FOR_FIRST) * others / sum(claim.share for claim in claims if not claim.needs)
    served = max(min(sum(claim.needs for claim in trained), most * left), left * first / (first + others))
    return served if claims[0].needs else (left - served) * claims[0].share / others


def split(left: float, claims: Sequence[Claim]) -> list[float]:
    """How `left` seconds are split among stages that each take as long as they may."""
    seconds: list[float] = []
    for number in range(len(claims)):
        seconds.append(stage_seconds(left - sum(seconds), claims[number:]))
    return seconds
