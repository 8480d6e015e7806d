"""Processes that tests use in place of a server or a worker."""

import multiprocessing
import threading
import time
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


def end_slowly(pipe: Connection, control: Connection) -> None:
    """Called in the new process: closes its pipes a while before it ends, as a process on a busy machine may."""
    pipe.recv()
    pipe.close()
    control.close()
    time.sleep(0.5)
