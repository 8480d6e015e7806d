"""A real server on a free port, in a thread, with the micro pack; and OpenAI's client for it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from codebrush import Codebrush


@pytest.fixture(scope="session")
def served_brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@contextmanager
def running(brush: Codebrush, data: Path, **settings: Any) -> Iterator[tuple[str, Any]]:
    """The URL of a server, and its engine."""
    import uvicorn

    from codebrush.serving.api import make_app
    from codebrush.serving.engine import Engine
    from codebrush.serving.settings import Settings
    from codebrush.serving.store import Store

    given = Settings(packs=("micro",), data=data, **settings)
    engine = Engine({"micro": lambda: brush}, Store(data), given.limits)
    server = uvicorn.Server(uvicorn.Config(make_app(engine, given), port=0, log_config=None, access_log=False))
    began = threading.Event()

    async def serve() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        began.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert began.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", engine
    finally:
        server.should_exit = True
        thread.join(30)


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
