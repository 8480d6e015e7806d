"""Holds back what the Rust threads of LanceDB print to stderr when they panic, and passes everything else on.

A panicking thread writes several lines to file descriptor 2 before LanceDB raises an error, which becomes one line
anyway. The descriptor belongs to the whole process: other threads write to it too, and a child process started
meanwhile inherits it. So only our own command line redirects it, for one call at a time, and to a pipe: what somebody
is just writing when the block ends, or a child writes later, still has a reader.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

DEBUG_VARIABLE = "CODEBRUSH_DEBUG"  # if it is set, nothing is held back
STDERR = 2
PANIC = re.compile(rb"^\n?thread '.*' .*panicked at ", re.MULTILINE)
PATIENCE = 1.0  # seconds to wait at the end for writers that still have the pipe; a child may keep it for hours
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
    """Redirect the descriptor to a pipe, if both can be opened; the returned function restores it and returns what was
    written."""
    try:
        own = os.dup(STDERR)
    except OSError:
        return bytes
    try:
        reading_end, writing_end = os.pipe()
    except OSError:
        os.close(own)
        return bytes
    os.dup2(writing_end, STDERR)
    os.close(writing_end)
    reader = _PipeReader(reading_end)
    reader.start()

    def restore() -> bytes:
        os.dup2(own, STDERR)
        os.close(own)
        return reader.release()

    return restore


class _PipeReader(Thread):
    """Collects what is written to a pipe until it is released, and passes on what comes later."""

    def __init__(self, reading_end: int) -> None:
        super().__init__(daemon=True)
        self.reading_end = reading_end
        self.written: list[bytes] = []
        self.released = False
        self.lock = Lock()

    def run(self) -> None:
        with open(self.reading_end, "rb", buffering=0) as stream:
            while chunk := stream.read(65536):
                with self.lock:
                    if self.released:
                        _pass_on(chunk)
                    else:
                        self.written.append(chunk)

    def release(self) -> bytes:
        """Wait until every writer has closed the pipe, but not for long, and return what was collected."""
        self.join(PATIENCE)
        with self.lock:
            self.released = True
            return b"".join(self.written)


def _pass_on(written: bytes) -> None:
    with suppress(OSError), open(STDERR, "wb", closefd=False) as stream:
        stream.write(written)
