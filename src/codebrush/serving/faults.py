"""What a caller is told of an error: the line of one that a user can cause, of any other nothing but its kind.

A full disk is the server's trouble, wherever it shows: in a file, in SQLite, in an index, or in a training's last line.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Any

from codebrush.errors import CodebrushError, PackError, lacks_memory
from codebrush.serving.jobs.job import JobError
from codebrush.serving.log import log_failure

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


def fault_of(error: Exception, plain: Callable[[str], str], **about: Any) -> dict[str, str]:
    """The code and the message of an error; `plain` takes this machine's paths out of a line. What is no caller's fault
    is logged, with what it is `about`."""
    if not isinstance(error, JobError) and disk_is_full(error):
        log_failure(error, **about)
        return dict(NO_SPACE)
    if isinstance(error, JobError):
        return {"code": error.code, "message": plain(str(error))}
    if isinstance(error, PackError):
        return {"code": "unsupported_by_model", "message": plain(str(error))}
    if isinstance(error, CodebrushError):
        return {"code": "invalid_value", "message": plain(str(error))}
    log_failure(error, **about)
    if lacks_memory(error):
        return {"code": "out_of_memory", "message": "there is not enough memory for this: ask for less"}
    return {"code": "internal_error", "message": "something went wrong in the server; its log says what"}
