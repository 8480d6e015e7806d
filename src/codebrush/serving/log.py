"""The server's log: one JSON object a line on stderr, without anything that a user wrote."""

import json
import sys
import time
import traceback
from typing import Any


def log(what: str, **fields: Any) -> None:
    """Write one line: the time, what happened, and its `fields`."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": what, **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)


def log_failure(error: BaseException, **fields: Any) -> None:
    """Write where an unexpected error came from: files and lines, not its text, which may quote a prompt."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    log("unexpected error", error=type(error).__name__, at=frames, **fields)
