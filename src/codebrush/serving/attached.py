"""Runs a command line of codebrush that ends when the server does: `python -m codebrush.serving.attached train ...`.

The server holds the other end of its standard input. When that is closed, which the system does even for a server that
was killed, the command is interrupted as by Ctrl-C: a training saves a checkpoint and stops, and never goes on unseen.
"""

import _thread
import os
import runpy
import signal
import threading
import time

SAVING = 60.0  # seconds that it has then


def _end_with_server() -> None:
    while os.read(0, 1024):  # nothing is written there
        pass
    _thread.interrupt_main()
    time.sleep(SAVING)
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_server, daemon=True).start()
    runpy.run_module("codebrush", run_name="__main__", alter_sys=True)
