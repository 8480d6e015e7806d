"""Time that a test decides."""

import threading
import time
from collections.abc import Callable

import pytest


def set_monotonic(monkeypatch: pytest.MonkeyPatch, read: Callable[[], float]) -> None:
    """Let `time.monotonic` be `read` in this thread. In others time goes on: the event loop of a server that another
    test started would sleep until the hour that it computes of two different times."""
    thread, real = threading.get_ident(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: read() if threading.get_ident() == thread else real())
