"""Holds back what the Rust threads of LanceDB print to stderr when they panic, and passes everything else on.

A panicking thread writes several lines to file descriptor 2 before LanceDB raises an error, which becomes one line
anyway. The descriptor belongs to the whole process: other threads write to it too, and a child process started
meanwhile inherits it. So only our own command line redirects it, for one call at a time.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from threading import Lock

DEBUG_VARIABLE = "CODEBRUSH_DEBUG"  # if it is set, nothing is held back
STDERR = 2
PANIC = re.compile(rb"^\n?thread '.*' .*panicked at ", re.MULTILINE)
_only_one = Lock()


@contextmanager
def hold_panics() -> Iterator[None]:
    """Collect what is written to file descriptor 2 and pass it on at the end of the block: everything, or if the block
    raises, everything before the first panic. Inside another such block, or beside one in another thread, do nothing.
    """
    if os.environ.get(DEBUG_VARIABLE) or not _only_one.acquire(blocking=False):
        yield
        return
    try:
        restore = _redirect()
        try:
            yield
        except BaseException:
            _pass_on(PANIC.split(restore(), 1)[0])
            raise
        _pass_on(restore())
    finally:
        _only_one.release()


def _redirect() -> Callable[[], bytes]:
    """Redirect the descriptor to a file, if both can be opened; the returned function restores it and returns what was
    written."""
    try:
        own = os.dup(STDERR)
    except OSError:
        return bytes
    try:
        file = TemporaryFile()  # noqa: SIM115 - the returned function closes it
        os.dup2(file.fileno(), STDERR)
    except OSError:
        os.close(own)
        return bytes

    def restore() -> bytes:
        os.dup2(own, STDERR)
        os.close(own)
        with file:
            file.seek(0)
            return file.read()

    return restore


def _pass_on(written: bytes) -> None:
    with suppress(OSError), open(STDERR, "wb", closefd=False) as stream:
        stream.write(written)
