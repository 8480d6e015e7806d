"""Counts the seconds spent on a pack, by stage, over all the processes that worked on it one after the other."""

import json
import time
from pathlib import Path

from codebrush.files import atomic_file, read_object


class Clock:
    """Seconds spent by stage, stored with each checkpoint.

    This process's time counts from `began`, a time of `time.monotonic`; None is now. What a killed process did after
    its last checkpoint is lost, both its steps and its time.
    """

    def __init__(self, path: Path, writes: bool = True, began: float | None = None):
        self.path, self.writes, self.last = path, writes, time.monotonic() if began is None else began
        self.seconds: dict[str, float] = read_object(path)

    def spent(self) -> float:
        """Seconds since the first process began, without the pauses between processes."""
        return sum(self.seconds.values()) + time.monotonic() - self.last

    def running(self) -> float:
        """Seconds since the last call of `charge`."""
        return time.monotonic() - self.last

    def charge(self, to: str = "between") -> None:
        """Count the time since the last call for the stage `to`, and store it for a process that resumes."""
        now = time.monotonic()
        self.seconds[to] = self.seconds.get(to, 0.0) + now - self.last
        self.last = now
        if self.writes:
            with atomic_file(self.path) as part:
                part.write_text(json.dumps(self.seconds), encoding="utf-8")
