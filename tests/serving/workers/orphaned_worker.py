"""A process with a worker, as a server's, that a test kills."""

import multiprocessing
import threading
from multiprocessing.connection import Connection
from pathlib import Path


def start_worker(told: Connection, data: Path) -> None:
    """Called in the new process: says the id of the worker when it is ready, and waits to be killed."""
    from codebrush.serving.library import Library
    from codebrush.serving.workers.processes import Processes

    ready = threading.Event()
    workers = Processes(1, Library((), data), context=multiprocessing.get_context("forkserver"))
    workers.start(lambda number, is_ready: ready.set())
    ready.wait()
    told.send(workers._ready[0].process.pid)
    threading.Event().wait()
