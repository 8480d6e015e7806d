"""Servers on the micro pack; the files of this folder are skipped where the extra is missing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server_thread import running

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
