"""What a caller is told of an error: the line of one that a user can cause, of any other nothing but its kind.

A full disk is the server's trouble, wherever it shows: in a file, in SQLite, in an index, or in a training's last line.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Any

from codebrush.errors import CodebrushError, PackError, lacks_memory
from codebrush.serving.job import JobError
from codebrush.serving.log import log, origin

FULL = (errno.ENOSPC, errno.EDQUOT)
# As the system, SQLite and Lance say it in errors that have no number.
FULL_LINES = ("no space left on device", "disk quota exceeded", "database or disk is full", "os error 28")
NO_SPACE = {"code": "no_space", "message": "the server has no disk space left for this: free some, and ask again"}


def disk_is_full(error: BaseException) -> bool:
    """Whether an error comes from a full disk, itself or by what it was raised from."""
    return any(
        (isinstance(each, OSError) and each.errno in FULL)
        or (not isinstance(each, CodebrushError) and says_full(str(each)))  # which may repeat what a caller wrote
        for each in _with_causes(error)
    )


def says_full(text: str) -> bool:
    """Whether a line is about a full disk."""
    return any(line in text.lower() for line in FULL_LINES)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def not_deleted(what: str, error: OSError) -> JobError:
    """The error of something whose folder cannot be renamed."""
    reason = (error.strerror or type(error).__name__).lower()
    return JobError("not_deleted", f"{what} is not deleted ({reason}): let the server write in the folder above it")


def fault_of(error: Exception, plain: Callable[[str], str], **about: Any) -> dict[str, str]:
    """The code and the message of an error; `plain` takes this machine's paths out of a line. What is no caller's fault
    is logged, with what it is `about`."""
    found = error if isinstance(error, FaultElsewhere) else FaultElsewhere.of(error)
    if found.origin is not None:
        log("unexpected error", **found.origin, **about)
    return {"code": found.code, "message": plain(found.message)}


class FaultElsewhere(Exception):
    """An error as another process may be told of it: its code and message, and of one that is no caller's fault the
    `origin`, which is logged."""

    def __init__(self, code: str, message: str, origin: dict[str, Any] | None) -> None:
        super().__init__(code, message, origin)  # as it is pickled
        self.code, self.message, self.origin = code, message, origin

    @classmethod
    def of(cls, error: Exception) -> "FaultElsewhere":
        """What is to be told of an error that was raised here."""
        if isinstance(error, JobError):
            return cls(error.code, str(error), None)
        if disk_is_full(error):
            return cls(**NO_SPACE, origin=origin(error))
        if isinstance(error, PackError):
            return cls("unsupported_by_model", str(error), None)
        if isinstance(error, CodebrushError):
            return cls("invalid_value", str(error), None)
        if lacks_memory(error):
            return cls("out_of_memory", "there is not enough memory for this: ask for less", origin(error))
        return cls("internal_error", "something went wrong in the server; its log says what", origin(error))
