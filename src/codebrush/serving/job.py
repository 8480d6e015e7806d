"""A job: what one caller asked for, how far it is, and what came of it."""

import io
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from PIL import Image

from codebrush.errors import CodebrushError

KEPT_SHOWN = 4
CANCELLING = "cancelling"
ENDED = ("done", "failed", "cancelled")


class JobError(CodebrushError):
    """A job that cannot be taken or went wrong; `code` says it in one word to programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class QueueFull(JobError):
    """The queue has no place; `retry_after` is in how many seconds it may have one."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("queue_full", f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class Stopped(Exception):
    """Raised within a job's work when nobody waits for it any more, or the server stops."""


@dataclass(eq=False)
class Job:
    """One job. `request` are the arguments of its kind; `listeners` are called, in any thread, after each change.

    `state` is queued, running, cancelling, done, failed or cancelled; `late` is one that takes too long. `shown` are
    the half-drawn pictures so far, the last of `shown_step`, each a list with one picture or more as PNG; `losses`
    those of guidance so far, one a step.
    """

    kind: str
    pack: str
    owner: str
    request: dict[str, Any]
    folder: Path
    id: str = field(default_factory=lambda: f"job_{secrets.token_hex(16)}")
    state: str = "queued"
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    error: dict[str, str] | None = None
    result: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    step: int = 0
    of: int = 0
    shown: list[list[bytes]] = field(default_factory=list)
    shown_step: int = 0
    losses: list[float] = field(default_factory=list)
    timed_from: tuple[float, int] | None = None  # when the first of its steps was done, and which one that was
    cancelled: bool = False
    late: bool = False
    listeners: list[Callable[[], None]] = field(default_factory=list)
    _lock: RLock = field(default_factory=RLock)

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED

    @property
    def seconds_left(self) -> float | None:
        """About how many seconds it will still take; None if that is not known."""
        if self.state != "running" or self.timed_from is None:
            return None
        began, first = self.timed_from  # what comes before the first step, such as opening a pack, comes once
        steps = self.step - first
        return round((time.time() - began) / steps * (self.of - self.step), 1) if steps > 0 else None

    def changed(self) -> None:
        """Tell the listeners."""
        with self._lock:
            listeners = list(self.listeners)
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change from now on."""
        with self._lock:
            self.listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Call `listener` no more."""
        with self._lock:
            self.listeners.remove(listener)

    def progress(self, step: int, of: int) -> None:
        """Say how far it is."""
        self.step, self.of = step, of
        if self.timed_from is None:
            self.timed_from = (time.time(), step)
        self.changed()

    def warn(self, text: str) -> None:
        """Keep a warning for the caller, each once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.changed()

    def begin_again(self) -> None:
        """Its work begins anew, or goes on from where it was last stored."""
        self.started, self.step, self.timed_from = time.time(), 0, None

    def show(self, pictures: Sequence[Image.Image], step: int) -> None:
        """Show pictures as they are now. Of many times only the latest few are kept."""
        self.show_files([png_bytes(picture) for picture in pictures], step)

    def show_files(self, files: list[bytes], step: int) -> None:
        """Show pictures that are PNG files already, unless those of that step, or a later one, were shown before."""
        if step <= self.shown_step:
            return
        self.shown_step = step
        self.shown.append(files)
        if len(self.shown) > KEPT_SHOWN:
            self.shown[-KEPT_SHOWN - 1] = []
        self.changed()

    def row(self) -> dict[str, Any]:
        """What the store keeps of it."""
        names = ("id", "kind", "pack", "owner", "request", "state", "created", "started", "attempts")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of_row(cls, row: Mapping[str, Any], folder: Path) -> "Job":
        """A job from its row in the store."""
        names = ("id", "kind", "pack", "owner", "request", "state", "created", "started", "finished", "attempts")
        warnings = (row["result"] or {}).get("warnings", [])
        return cls(**{name: row[name] for name in (*names, "error", "result")}, folder=folder, warnings=warnings)


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
