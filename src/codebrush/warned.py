"""Warnings for whoever asked for the work: Python's own, or, within `heard`, told to a listener of this thread alone.

`warnings.catch_warnings` cannot do that: what it changes holds for all threads of the process.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int | None], None]  # called with the text, and the number of the request that it is about
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_NUMBER: ContextVar[int | None] = ContextVar("number", default=None)


def warn(text: str, stacklevel: int = 1) -> None:
    """Tell the listener of this thread; without one, a UserWarning. `stacklevel` is as in `warnings.warn`."""
    listener = _LISTENER.get()
    if listener is None:
        warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)
    else:
        listener(text, _NUMBER.get())


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
