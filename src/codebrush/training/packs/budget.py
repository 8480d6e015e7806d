"""What a person writes after --budget -> seconds. Light, so that a wrong budget is told at once."""

import math

from codebrush.errors import UsageError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_budget(text: str) -> float:
    """'60m', '90s', '2h', '1.5d' -> seconds; a bare number counts minutes."""
    text = text.strip().lower()
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "m")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise UsageError(f"--budget '{text}' is no positive time: write it like 90s, 60m, 2h or 1d")
    return seconds
