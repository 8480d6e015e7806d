"""Output of commands: JSON or a table on stdout, a progress bar on stderr, and file names that overwrite nothing."""

import glob
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codebrush.errors import CodebrushError
from codebrush.progress import Progress

SLUG_LENGTH = 40  # characters; even of four bytes each they stay under the 255 bytes that a file name may have


def print_json(report: dict[str, Any]) -> None:
    """Print the one JSON object of a command, in ASCII, which works on every terminal and pipe."""
    print(json.dumps(report))


def print_pictures(report: dict[str, Any]) -> None:
    """Print a run's pictures with their CLIP scores as a table, then the other files and the seconds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("picture", "CLIP score", box=None, header_style="bold")
    for picture in report["images"]:
        table.add_row(picture["path"], f"{picture['clip_score']:.3f}")
    width = None if sys.stdout.isatty() else 10_000  # paths must not be wrapped in a pipe
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    console.print(table, soft_wrap=True)
    for key, label in (("sheet", "contact sheet"), ("folder", "run"), ("video", "video")):
        if key in report:
            console.print(f"{label}: {report[key]}", soft_wrap=True)
    console.print(f"{report['seconds']:.1f} seconds")


def slug(text: str) -> str:
    """`text` as part of a file name: lower-case letters and digits, joined by hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower().replace("_", " "))
    return "-".join(words)[:SLUG_LENGTH].strip("-") or "picture"


def check_folder(folder: Path, flag: str = "--out") -> None:
    """Raise CodebrushError if `folder`, which need not exist yet, is a file or read-only; `flag` is what named it."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not existing.is_dir():
        raise CodebrushError(f"cannot write in {folder}: {existing} is a file; name another folder with {flag}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CodebrushError(f"cannot write in {folder}: {existing} is read-only; name another folder with {flag}")


def free_run_name(folder: Path, name: str) -> str:
    """`name`, or `name` with a number if `folder` already has files of a run of that name."""
    number, free = 1, name
    while any(folder.glob(f"{glob.escape(free)}_*")):
        number += 1
        free = f"{name}-run{number}"
    return free


def free_folder(folder: Path) -> Path:
    """`folder`, or `folder` with a number after its name if it already exists."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-run{number}")
    return free


def free_file(path: Path) -> Path:
    """`path`, or `path` with a number before its suffix if it already exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """A progress bar on stderr, to be called with (done, total); None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)
