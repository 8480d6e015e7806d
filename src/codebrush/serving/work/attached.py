"""Runs a command line that ends when the server does: `python -m codebrush.serving.work.attached train ...`.

The server holds the other end of its standard input. When that is closed, which the system does even for a server that
was killed, the command is interrupted as by Ctrl-C: a training saves a checkpoint and stops. Neither it nor what it has
started goes on unseen.
"""

import _thread
import os
import runpy
import signal
import threading
import time

SAVING = 60.0  # seconds that it has then
alone = threading.Event()  # set when the server is gone


def _end_with_server() -> None:
    while os.read(0, 1024):  # nothing is written there
        pass
    alone.set()
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # also when it waits for something
    else:
        _thread.interrupt_main()
    time.sleep(SAVING)
    _end_all()


def _end_all() -> None:
    """End this process, and with it what it has started, if it has a session of its own."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        runpy.run_module("codebrush", run_name="__main__", alter_sys=True)
    finally:
        if alone.is_set():
            _end_all()
