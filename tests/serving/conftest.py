"""Servers on the micro pack, and the page on the built-in one with a browser; skipped where an extra is missing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server_thread import running
from studio_browser import Watch, browser_path, launched

from codebrush import Codebrush


@pytest.fixture(scope="session")
def served_brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@pytest.fixture
def serve(served_brush: Codebrush, tmp_path: Path) -> Iterator[Callable[..., tuple[str, Any]]]:
    """A function that starts a server with some settings: its URL and engine."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(served_brush, tmp_path / "data", **settings))


@pytest.fixture(scope="module")
def server(served_brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """One server for the tests of a file: its URL and engine."""
    with running(served_brush, tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """One server of the built-in pack with the page, for all files: its URL and engine."""
    pytest.importorskip("gradio", reason='needs the extra "studio"')
    brush = Codebrush.from_pretrained("emoji", device="cpu")
    with running(brush, tmp_path_factory.mktemp("studio"), "emoji", page=True, grace=2) as found:
        yield found


@pytest.fixture(scope="module")  # not longer: Playwright's event loop is in the way of others in the same thread
def browser() -> Iterator[Any]:
    """A browser without a window."""
    pytest.importorskip("playwright", reason="needs playwright")
    path = browser_path()
    if path is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on the PATH")
    with launched(path) as found:
        yield found


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a URL in a new window. At the end the window must have asked no other host for anything,
    and have logged no error."""
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(Watch(browser, url, **options))


@pytest.fixture
def page(studio: tuple[str, Any], visit: Callable[..., Any]) -> Any:
    """The page in a new window of its own."""
    return visit(studio[0])
