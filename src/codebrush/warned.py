"""Warnings for whoever asked for the work: Python's own, or, within `heard`, told to a listener of this thread alone.

What has another name now is read under its former one for one version more, with a warning (UPGRADING.md).

`warnings.catch_warnings` cannot do that: what it changes holds for all threads of the process.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from codebrush.errors import without_secrets

BETWEEN = ("torch", "contextlib")  # they wrap generators, and so stand between a user and this package
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
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


def warn_of_former_name(former: str, present: str) -> None:
    """Say that a name which was given has another one now; what is stored under it is read without a word."""
    warn(f"{former} is called {present} now: use that, as the earlier name may go with the next minor version")


def formerly(**present: str) -> Callable[[Function], Function]:
    """Decorate a function whose arguments had other names, former to present, in the version before."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            for name in present.keys() & named:
                if present[name] in named:
                    raise TypeError(f"{function.__name__}() got {present[name]} twice, once as {name}")
                warn_of_former_name(name, present[name])
                named[present[name]] = named.pop(name)
            return function(*arguments, **named)

        called.former_names = present  # pyright: ignore[reportAttributeAccessIssue]
        return called  # pyright: ignore[reportReturnType]

    return decorate


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
