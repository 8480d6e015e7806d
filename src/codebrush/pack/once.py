"""Attributes that are made at first use, once, although several threads may ask for them at the same time."""

from functools import cached_property
from threading import RLock
from typing import Any, TypeVar

T = TypeVar("T")
_MAKING = RLock()


class made_once(cached_property[T]):
    """`functools.cached_property`, which since Python 3.12 has no lock, with one: a model is not read twice."""

    def __get__(self, instance: Any, owner: Any = None) -> T:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `functools.cached_property`."""
        with _MAKING:
            return super().__get__(instance, owner)
