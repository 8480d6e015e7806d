"""Runs the API with uvicorn until it is told to stop."""

import os
import signal
import socket
import threading
import warnings
import webbrowser
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from codebrush.errors import UsageError
from codebrush.pack.pack import open_pack
from codebrush.pipeline import Codebrush
from codebrush.serving.app import make_app
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.log import log, logged_to_stderr
from codebrush.serving.settings import Settings
from codebrush.serving.workers.processes import Processes
from codebrush.serving.workers.task import Workers


def serve(settings: Settings, workers: Callable[[Library, str], Workers] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `workers` makes those that work, of a library with some weights; None: processes.

    Raises:
        PackError: if a pack cannot be opened.
        UsageError: if the address cannot be listened on, a library is no folder, or this machine cannot draw with the
            weights.
        CodebrushError: if another server keeps its jobs in the same folder.
    """
    with logged_to_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # callers hear of theirs by `heard`; those of libraries are no lines of the log
        _serve(settings, workers)


def _serve(settings: Settings, make_workers: Callable[[Library, str], Workers] | None) -> None:
    packs: dict[str, Codebrush] = {}
    for source in settings.packs:
        name = _name_of(source, packs)  # which pictures say, too: where the server has it is no caller's business
        packs[name] = Codebrush(open_pack(source, name), weights=settings.weights)
    settings = replace(settings, packs=tuple(packs))
    library = Library(settings.libraries, settings.data)
    listener = _listen(settings)
    store = Store(settings.data)
    opened = {name: lambda brush=brush: brush for name, brush in packs.items()}
    if make_workers is None and settings.workers > 1:
        make_workers = partial(Processes, settings.workers)
    workers = None if make_workers is None else make_workers(library, settings.weights)
    engine = Engine(opened, store, settings.limits, library=library, weights=settings.weights, workers=workers)
    config = uvicorn.Config(
        make_app(engine, settings), log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace)), ws="none",
        proxy_headers=False,  # callers are told apart by address, which they must not choose themselves
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    log("serving", address=address, packs=list(engine.packs), libraries=list(library.roots))
    if settings.page:
        print(f"Studio is at {address}; Ctrl-C stops it.", flush=True)
    server = _Server(config, engine, address if settings.open_page else None)
    with _signals_for(server):
        server.run(sockets=[listener])
        engine.stop(0)  # if uvicorn was told to end at once, it has not
    log("stopped")


def _name_of(source: str, taken: Collection[str]) -> str:
    """What callers call a pack: as it was named, or of a folder its own name, without the way to it."""
    is_folder = (os.sep in source or source in (".", "..")) and Path(source).is_dir()
    first = os.path.basename(os.path.abspath(source)) if is_folder else source
    name, number = first, 1
    while name in taken:
        number += 1
        name = f"{first}-{number}"
    return name


class _Server(uvicorn.Server):
    """uvicorn's, which opens the page `opened` when it answers, and tells the engine of a signal, before it waits for
    open connections: of the first one, and of a second Ctrl-C, after which nothing is finished first."""

    def __init__(self, config: uvicorn.Config, engine: Engine, opened: str | None) -> None:
        super().__init__(config)
        self.engine, self.opened = engine, opened
        self.grace = config.timeout_graceful_shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started and self.opened is not None:
            threading.Thread(target=webbrowser.open, args=(self.opened,), daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        log(
            "stopping",
            seconds=0 if self.force_exit else self.grace,
            how="what runs is finished first; Ctrl-C again ends it",
        )
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn, which would end the process by the signal after it has stopped in order."""
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.engine.begin_stop(now=self.force_exit)
        self.should_exit = True


@contextmanager
def _signals_for(server: _Server) -> Iterator[None]:
    """Let signals reach the server also while the engine stops: uvicorn takes them only as long as it runs itself, and
    one that ended the process then would leave jobs as a kill does."""
    before = {number: signal.signal(number, server.handle_exit) for number in HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(settings: Settings) -> socket.socket:
    """A socket that listens already, so that port 0 has its number."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, reuse_port=False)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {settings.host}:{settings.port}: {reason}; name another --port") from error
