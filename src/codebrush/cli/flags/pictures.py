"""Picture files on the command line: folders and addresses are refused with a hint, unreadable ones are skipped."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from codebrush.errors import ImageError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from codebrush.models.clip import CLIP

T = TypeVar("T")


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


def each_readable(files: Sequence[Path], skipped: list[dict[str, str]], work: Callable[[int, Path], T]) -> list[T]:
    """`work` done on each file and its number. Those that cannot be read are named on stderr and added to `skipped`.

    Raises:
        ImageError: if none can be read.
    """
    done: list[T] = []
    for number, path in enumerate(files):
        try:
            done.append(work(number, path))
        except ImageError as error:
            reason = str(error).removeprefix(f"{path}: ")
            print(f"codebrush: skipped {path}: {reason}", file=sys.stderr)
            skipped.append({"path": str(path), "reason": reason})
    if not done:
        raise ImageError("none of the pictures could be read: the reasons are above")
    return done


def seen_picture(clip: "CLIP", path: Path) -> "tuple[Image.Image, dict[str, int]]":
    """A picture file decoded for a CLIP, and its frame for a report: {} if the file holds a single picture.

    Raises:
        ImageError: if it cannot be read.
    """
    from codebrush.data.decoding.images import read_picture

    picture = read_picture(path, keep_mode=True, wanted=max(clip.image_shape))
    return picture.image, frame_entry(picture.frame)


def frame_entry(frame: int | None) -> dict[str, int]:
    """The part of a report that says which frame or page of a file was read; {} if it holds a single picture."""
    return {} if frame is None else {"frame": frame}


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
