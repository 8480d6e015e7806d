"""Paths of a command line in; those that can be pictures, and what to write instead of the others, out."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from codebrush.errors import UsageError


def picture_files(paths: Sequence[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """Without the folders and URLs, which are named on stderr and come back with their reasons.

    A UsageError where nothing is left.
    """
    wrong = {path: reason for path in paths if (reason := why_no_file(path)) is not None}
    files = [path for path in paths if path not in wrong]
    if not files:
        raise UsageError(next(iter(wrong.values())))
    for reason in wrong.values():
        print(f"codebrush: skipped {reason}", file=sys.stderr)
    return files, [{"path": str(path), "reason": reason} for path, reason in wrong.items()]


def check_picture_file(path: Path) -> None:
    """A UsageError for a folder or a URL."""
    picture_files([path])


def why_no_file(path: Path) -> str | None:
    """What a folder or URL is, and what to write instead; None for anything else, be it there or not."""
    if path.is_dir():
        return f"{path} is a folder: name the pictures in it, like {path / '*.png'}"
    address = re.sub(r"^([A-Za-z]{2,}):/+", r"\1://", str(path))  # a path keeps one slash of two
    if "://" in address and not path.exists():
        return f"{address} is an address: pictures must be files, so fetch it first"
    return None
