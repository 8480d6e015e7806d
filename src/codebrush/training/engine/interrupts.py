"""Holds back Ctrl-C until a training step has ended, so that a checkpoint can be saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed, which no longer interrupts a step in the middle.

    A second Ctrl-C interrupts at once. Nothing changes in a thread, or if the signal has a handler that does something
    else than raise KeyboardInterrupt, as Python's own and those with a true `raises_interrupt` do.
    """
    came, before = False, signal.getsignal(signal.SIGINT)

    def hold(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, before)

    main = threading.current_thread() is threading.main_thread()
    if not (main and (before is signal.default_int_handler or getattr(before, "raises_interrupt", False))):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
