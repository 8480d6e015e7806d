"""A call into native code in; what a thread of it prints as it dies held back, and all else passed on, out.

A Rust thread that panics writes several lines to file descriptor 2 before LanceDB raises what became of it, which is
told in one line anyway. That descriptor is the whole process's: other threads write to it too, and a child that is
started meanwhile keeps what it is then. So only a command line of our own holds it, and for one call at a time.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from threading import Lock

DEBUG_VARIABLE = "CODEBRUSH_DEBUG"  # holds nothing back where it is set
STDERR = 2
PANIC = re.compile(rb"^\n?thread '.*' .*panicked at ", re.MULTILINE)
_only_one = Lock()


@contextmanager
def panics_held() -> Iterator[None]:
    """Keeps what is written to file descriptor 2 meanwhile, and passes it on at the end: all of it, or where the block
    raises as far as the first panic. Inside another such block, or beside one of another thread, it does nothing.
    """
    if os.environ.get(DEBUG_VARIABLE) or not _only_one.acquire(blocking=False):
        yield
        return
    try:
        restore = _divert()
        try:
            yield
        except BaseException:
            _pass_on(PANIC.split(restore(), 1)[0])
            raise
        _pass_on(restore())
    finally:
        _only_one.release()


def _divert() -> Callable[[], bytes]:
    """Point the descriptor at a file, if it is open and there is room for one; the result points it back where it was
    and gives what was written."""
    try:
        own = os.dup(STDERR)
    except OSError:
        return bytes
    try:
        file = TemporaryFile()  # noqa: SIM115 - it is closed by what is returned
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
