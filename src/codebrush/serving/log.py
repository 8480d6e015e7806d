"""The server's log: one JSON object a line, without anything that a user wrote. `codebrush serve` has it on stderr."""

import json
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGER = logging.getLogger("codebrush.serving")
_LOGGER.setLevel(logging.INFO)


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """The log goes to stderr within, and nowhere else, with what uvicorn warns of. Afterwards both are as they were."""
    uvicorn, lines = logging.getLogger("uvicorn.error"), _Lines(logging.WARNING)
    before = _LOGGER.handlers, _LOGGER.propagate
    _LOGGER.handlers, _LOGGER.propagate = [logging.StreamHandler()], False
    uvicorn.addHandler(lines)
    try:
        yield
    finally:
        uvicorn.removeHandler(lines)
        _LOGGER.handlers, _LOGGER.propagate = before


class _Lines(logging.Handler):
    """Writes what uvicorn says as lines of our log."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging. Without the traceback: what fails in a request is logged where it is answered."""
        log("uvicorn", said=record.getMessage())


def log(what: str, **fields: Any) -> None:
    """Write one line: the time, what happened, and its `fields`."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": what, **fields}
    _LOGGER.info(json.dumps(line))


def log_failure(error: BaseException, **fields: Any) -> None:
    """Write where an unexpected error came from."""
    log("unexpected error", **origin(error), **fields)


def origin(error: BaseException) -> dict[str, Any]:
    """Where an error came from: files and lines, not its text, which may quote a prompt."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"error": type(error).__name__, "at": frames}
