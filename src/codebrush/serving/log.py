"""The server's log: one JSON object a line, without anything that a user wrote. `codebrush serve` has it on stderr."""

import json
import logging
import time
import traceback
from typing import Any

_LOGGER = logging.getLogger("codebrush.serving")
_LOGGER.setLevel(logging.INFO)


def log_to_stderr() -> None:
    """Write the log to stderr, and nowhere else."""
    _LOGGER.handlers = [logging.StreamHandler()]
    _LOGGER.propagate = False


def log(what: str, **fields: Any) -> None:
    """Write one line: the time, what happened, and its `fields`."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": what, **fields}
    _LOGGER.info(json.dumps(line))


def log_failure(error: BaseException, **fields: Any) -> None:
    """Write where an unexpected error came from: files and lines, not its text, which may quote a prompt."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    log("unexpected error", error=type(error).__name__, at=frames, **fields)
