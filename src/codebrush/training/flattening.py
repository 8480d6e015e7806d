"""Nested settings as one flat mapping, to compare two of them setting by setting."""

from collections.abc import Mapping
from typing import Any


def leaves(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values of nested dicts by their dotted names, in order."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= leaves(value, f"{place}{name}.") if isinstance(value, dict) else {f"{place}{name}": value}
    return found
