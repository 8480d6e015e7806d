"""The options of a run in, from Python, a command line or a manifest; numbers within their ranges out."""

import math
import operator
from dataclasses import asdict, dataclass
from typing import Any

from codebrush.errors import UsageError

MAX_PICTURES = 1024
MAX_CANDIDATES = 4 * MAX_PICTURES
ABOVE_ZERO = math.ulp(0.0)

# kind, least, most, in words
LIMITS: dict[str, tuple[type, float, float, str]] = {
    "n": (int, 1, MAX_PICTURES, f"a whole number from 1 to {MAX_PICTURES}"),
    "seed": (int, 0, 2**63 - 1, "a whole number from 0 to 2^63 - 1"),
    "cfg": (float, 0, 100, "a number from 0 to 100"),
    "temperature": (float, 0, 100, "a number from 0 to 100"),
    "top_k": (int, 0, 2**31 - 1, "a whole number, 0 for all codes"),
    "top_p": (float, ABOVE_ZERO, 1, "a number above 0 and up to 1"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "rerank": (int, 1, MAX_CANDIDATES, f"a whole number from n to {MAX_CANDIDATES}"),
}


def checked_option(name: str, value: Any) -> Any:
    """`value` as a number that `generate` takes for the option `name`; a UsageError where it is none."""
    kind, least, most, words = LIMITS[name]
    try:
        number = operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise UsageError(f"{name} must be {words}, not {value}")
    return number


@dataclass(frozen=True)
class DrawOptions:
    """How a run is drawn; a value out of its range is a UsageError. `rerank` counts the candidates.

    `size` is WIDTHxHEIGHT in pixels, where it is not the pack's own.
    """

    n: int
    seed: int
    cfg: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    rerank: int
    size: str = ""

    def __post_init__(self) -> None:
        for name in LIMITS:
            object.__setattr__(self, name, checked_option(name, getattr(self, name)))
        if self.rerank < self.n:
            raise UsageError(f"rerank must be {LIMITS['rerank'][3]}, which is {self.n}, not {self.rerank}")

    def to_json(self) -> dict[str, Any]:
        """All but the seed, as a manifest has them."""
        return {name: value for name, value in asdict(self).items() if name != "seed" and value != ""}


def parse_size(text: str) -> tuple[int, int]:
    """Parse "128x96" as width and height in pixels, each from 1 to 65536. Raises UsageError if it is no such text."""
    width, height = parse_pair(text, "size", "x")
    if not (width.is_integer() and height.is_integer() and 1 <= width <= 65536 and 1 <= height <= 65536):
        raise UsageError(f"size must be WIDTHxHEIGHT in whole pixels, like 128x96, not {text}")
    return int(width), int(height)


def parse_pair(text: str, name: str, between: str) -> tuple[float, float]:
    """Parse two finite numbers with `between` between them. Raises UsageError, which names the option `name`."""
    try:
        first, second = (float(part) for part in str(text).lower().split(between))
        if not math.isfinite(first) or not math.isfinite(second):
            raise ValueError(text)
    except ValueError:
        raise UsageError(f"{name} must be two numbers with '{between}' between, not {text}") from None
    return first, second
