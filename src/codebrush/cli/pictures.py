"""Checks that paths on the command line can be pictures: folders and addresses are refused with a hint."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from codebrush.errors import UsageError


def picture_files(paths: Sequence[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """The paths that can be pictures, and a report of the folders and URLs among them, which are named on stderr.

    Raises:
        UsageError: if no path is left.
    """
    wrong = {path: reason for path in paths if (reason := not_a_picture(path)) is not None}
    files = [path for path in paths if path not in wrong]
    if not files:
        raise UsageError(next(iter(wrong.values())))
    for reason in wrong.values():
        print(f"codebrush: skipped {reason}", file=sys.stderr)
    return files, [{"path": str(path), "reason": reason} for path, reason in wrong.items()]


def check_picture_file(path: Path) -> None:
    """Raises UsageError if `path` is a folder or a URL."""
    picture_files([path])


def not_a_picture(path: Path) -> str | None:
    """Why a folder or URL cannot be a picture, and what to write instead; None for other paths, also missing ones."""
    if path.is_dir():
        return f"{path} is a folder: name the pictures in it, like {path / '*.png'}"
    address = re.sub(r"^([A-Za-z]{2,}):/+", r"\1://", str(path))  # a path keeps one slash of two
    if "://" in address and not path.exists():
        return f"{address} is an address: download it first, pictures must be files"
    return None
