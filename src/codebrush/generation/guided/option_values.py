"""Parses and checks the values of guidance options, which come from Python, a command line or a run folder."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from codebrush.errors import UsageError
from codebrush.generation.options import ABOVE_ZERO, checked_number
from codebrush.text.prompts import MAX_WEIGHT, read_number


def checked_value(option: "dataclasses.Field[Any]", value: Any) -> Any:
    """Convert `value` to the type of `option`, a field of `GuideOptions`.

    Raises:
        UsageError: if it has another type or is out of range.
    """
    kind, limits = option.metadata["kind"], option.metadata
    if value is None:
        if option.default is not None:
            raise UsageError(f"{option.name} must be set, not None")
        return None
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{option.name} must be true or false, not {value}")
        return value
    if kind is tuple:
        values = (value,) if isinstance(value, str) else value
        if not isinstance(values, Sequence) or not all(isinstance(each, str) for each in values):
            raise UsageError(f"{option.name} must be texts, not {value}")
        return tuple(values)
    if kind is str:
        if not isinstance(value, str) or ("choices" in limits and value not in limits["choices"]):
            wanted = f"one of {', '.join(limits['choices'])}" if "choices" in limits else "a text"
            raise UsageError(f"{option.name} must be {wanted}, not {value}")
        return value
    called = "a whole number" if kind is int else "a number"
    least = "above 0" if limits["least"] == ABOVE_ZERO else f"from {limits['least']:g}"
    wanted = f"{called} {least} to {limits['most']:g}"
    return checked_number(option.name, value, kind, limits["least"], limits["most"], wanted)


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """Parse "2GiB", "1500M" or a plain number as bytes, at least 1. Raises UsageError if it is anything else."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?I?)B?\s*", str(text).upper(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"max_memory must be a size like 2GiB or 1500M, not {text}")
    size = float(match[1]) * _UNITS[match[2]]
    if not 1 <= size < math.inf:
        raise UsageError(f"max_memory must be a size like 2GiB or 1500M, not {text}")
    return int(size)


def split_weights(text: str) -> tuple[str, float, float | None]:
    """Split NAME[:weight[:stop]] into the name, the weight (1 if not given) and the stop (None if not given).

    Numbers are read from the right, because names may hold colons; what is not a number belongs to the name.

    Raises:
        UsageError: if the weight is not within -100 to 100 or the stop is not finite.
    """
    name, numbers = text, []
    while len(numbers) < 2:
        head, colon, tail = name.rpartition(":")
        number = read_number(tail)
        if not colon or not head or number is None:
            break
        name, numbers = head, [number, *numbers]
    weight = numbers[0] if numbers else 1.0
    stop = numbers[1] if len(numbers) > 1 else None
    if not abs(weight) <= MAX_WEIGHT:  # nor is nan
        raise UsageError(f"the weight of {text} must lie between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
    if stop is not None and not math.isfinite(stop):
        raise UsageError(f"the stop of {text} must be a finite number, such as 0.4")
    return name, weight, stop
