"""Reads a --budget. Imports nothing heavy, so that a wrong one is reported at once."""

import math

from codebrush.errors import UsageError

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
        raise UsageError(f"--budget '{text}' is no positive time: write it like 90s, 60m, 2h or 1d")
    return seconds
