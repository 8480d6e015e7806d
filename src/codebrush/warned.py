"""Warnings for whoever asked for the work: Python's own, or, within `heard`, told to a listener of this thread alone.

`warnings.catch_warnings` cannot do that: what it changes holds for all threads of the process.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from codebrush.errors import without_secrets

BETWEEN = ("torch", "contextlib")  # they wrap generators, and so stand between a user and this package
T = TypeVar("T")
Listener = Callable[[str, int | None], None]  # called with the text, and the number of the request that it is about
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_NUMBER: ContextVar[int | None] = ContextVar("number", default=None)


def warn(text: str) -> None:
    """Tell the listener of this thread; without one, a `UserWarning` at the line outside this package that called it,
    however deep in the package the reason is."""
    text = without_secrets(text)
    listener = _LISTENER.get()
    if listener is not None:
        listener(text, _NUMBER.get())
        return
    frame = found = sys._getframe(1)
    own = True
    while frame is not None:  # to the outermost: libraries between call back into the package
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if own and package not in BETWEEN:
            found = frame
        own = package == __package__ or (own and package in BETWEEN)
        frame = frame.f_back
    place = found.f_globals
    registry = place.setdefault("__warningregistry__", {})
    warnings.warn_explicit(
        text, UserWarning, found.f_code.co_filename, found.f_lineno, place.get("__name__", ""), registry
    )


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Tell `listener` what is warned of in this thread inside the block."""
    before, number = _LISTENER.set(listener), _NUMBER.set(None)
    try:
        yield
    finally:
        _LISTENER.reset(before)
        _NUMBER.reset(number)


def numbered(requests: Iterable[T]) -> Iterator[T]:
    """Each of several requests that are done together; what is warned of until the next is about this one."""
    for number, request in enumerate(requests):
        before = _NUMBER.set(number)
        try:
            yield request
        finally:
            _NUMBER.reset(before)
