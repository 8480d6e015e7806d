"""What a command made in; one JSON object or a table on stdout, and file names that overwrite nothing,
out.
"""

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

SLUG_LENGTH = 40  # characters; of the widest letters still under the 255 bytes a name may have


def print_json(report: dict[str, Any]) -> None:
    """The one JSON object of a command, in ASCII, which every terminal and pipe can carry."""
    print(json.dumps(report))


def print_pictures(report: dict[str, Any]) -> None:
    """The pictures of a run with their scores, what else was written and its time, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("picture", "CLIP score", box=None, header_style="bold")
    for picture in report["images"]:
        table.add_row(picture["path"], f"{picture['clip_score']:.3f}")
    width = None if sys.stdout.isatty() else 10_000  # a path read from a pipe must not be broken into lines
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    console.print(table, soft_wrap=True)
    for name, called in (("sheet", "contact sheet"), ("folder", "run"), ("video", "video")):
        if name in report:
            console.print(f"{called}: {report[name]}", soft_wrap=True)
    console.print(f"{report['seconds']:.1f} seconds")


def slug(text: str) -> str:
    """`text` as part of a file name: its letters and digits in lower case, joined by hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower().replace("_", " "))
    return "-".join(words)[:SLUG_LENGTH].strip("-") or "picture"


def check_folder(folder: Path, flag: str = "--out") -> None:
    """CodebrushError where files can surely not be written in the `folder` of a flag, which need not be there yet."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise CodebrushError(f"cannot write in {folder}: {there} is a file; name another folder with {flag}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CodebrushError(f"cannot write in {folder}: {there} is read-only; name another folder with {flag}")


def free_run_name(folder: Path, name: str) -> str:
    """`name`, or `name` with a number, such that no file in `folder` is of a run of that name."""
    number, free = 1, name
    while any(folder.glob(f"{glob.escape(free)}_*")):
        number += 1
        free = f"{name}-run{number}"
    return free


def free_folder(folder: Path) -> Path:
    """`folder`, or `folder` with a number after its name, such that there is nothing of that name."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-run{number}")
    return free


def free_file(path: Path) -> Path:
    """`path`, or `path` with a number before its suffix, such that there is no such file."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """A bar on stderr to call with (done, in all); None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)
