"""A test that sets the time does so for itself."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from clocks import set_monotonic


@pytest.fixture
def sleeper() -> Iterator[Callable[[], bool]]:
    """An event loop in a thread, as that of a server: whether it still wakes every few milliseconds."""
    woken, ended = threading.Event(), threading.Event()

    async def sleep() -> None:
        while not ended.is_set():
            await asyncio.sleep(0.005)
            woken.set()

    def wakes() -> bool:
        woken.clear()
        return woken.wait(2)

    thread = threading.Thread(target=lambda: asyncio.run(sleep()), daemon=True)
    thread.start()
    yield wakes
    ended.set()
    thread.join(10)


def test_an_event_loop_goes_on_when_a_test_sets_the_time(
    sleeper: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sleeper()
    set_monotonic(monkeypatch, lambda: 7.0)
    assert time.monotonic() == 7.0
    assert sleeper()
    assert sleeper()
    monkeypatch.undo()
    assert sleeper()
