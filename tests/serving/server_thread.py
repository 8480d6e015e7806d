"""A real server on a free port, in a thread."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codebrush import Codebrush


@contextmanager
def running(brush: Codebrush, data: Path, name: str = "micro", **settings: Any) -> Iterator[tuple[str, Any]]:
    """The URL of a server of one pack, and its engine."""
    import uvicorn

    from codebrush.serving.app import make_app
    from codebrush.serving.jobs.engine import Engine
    from codebrush.serving.jobs.store import Store
    from codebrush.serving.library import Library
    from codebrush.serving.settings import Settings

    given = Settings(packs=(name,), data=data, **settings)
    library = Library(given.libraries, data)
    engine = Engine({name: lambda: brush}, Store(data), given.limits, library=library)
    config = uvicorn.Config(
        make_app(engine, given), port=0, log_config=None, access_log=False,
        timeout_graceful_shutdown=1,  # a page's stream of events has no end of its own
    )  # fmt: skip
    server = uvicorn.Server(config)
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
        thread.join(60)  # a last step may take half of that
        assert not thread.is_alive()


def openai_client(url: str) -> Any:
    """OpenAI's own client of a server at `url`, which does not try again."""
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)
