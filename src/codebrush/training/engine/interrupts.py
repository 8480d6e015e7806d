"""Holds back Ctrl-C until a training step has ended, so that a checkpoint can be saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed, which no longer interrupts a step in the middle.

    A second Ctrl-C interrupts at once. Nothing changes if the signal already has another handler, or in a thread.
    """
    came = False

    def hold(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    main = threading.current_thread() is threading.main_thread()
    if not (main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
