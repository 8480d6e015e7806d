"""Output of commands: JSON or a table on stdout, a progress bar on stderr."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.sources.file_names import escaped
from codebrush.errors import CodebrushError
from codebrush.progress import Progress

SAMPLE_SECONDS, LONG_SECONDS = 3.0, 20.0

if TYPE_CHECKING:
    from rich.table import Table

    from codebrush.text.tokenizer import Tokenizer


def print_json(report: dict[str, Any]) -> None:
    """Print the one JSON object of a command, in ASCII, which works on every terminal and pipe."""
    print(json.dumps(_escaped(report)))


def print_skipped(skipped: Sequence[Mapping[str, str]]) -> None:
    """Name the pictures that were skipped on stderr, a few for each reason."""
    from codebrush.data.sources.unread import first_of_each_reason

    for line in first_of_each_reason([(each["path"], each["reason"]) for each in skipped]):
        print(f"codebrush: skipped {line}", file=sys.stderr)


def _escaped(value: Any) -> Any:
    """A report whose names of files that are not UTF-8 have \\xe9 for such bytes: JSON cannot hold them as they are."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(entry) for key, entry in value.items()}
    return [_escaped(entry) for entry in value] if isinstance(value, list | tuple) else value


def unread_entry(tokenizer: "Tokenizer", texts: Sequence[str]) -> dict[str, list[str]]:
    """The part of a report that lists the words which the pack cannot read; empty if there are none."""
    from codebrush.text.reading import unread

    words = unread(texts, tokenizer)
    return {"unread_words": words} if words else {}


def prompt_entry(tokenizer: "Tokenizer", prompt: str, style: str | None = None) -> dict[str, Any]:
    """The part of a report that says how a prompt was understood: its parts with their weights, unread words, style."""
    from codebrush.text.prompts import understood
    from codebrush.text.reading import readable

    chosen = {} if style is None else {"style": style}
    return {"prompt": understood(readable(prompt, tokenizer)), **chosen, **unread_entry(tokenizer, [prompt])}


def print_pictures(report: dict[str, Any]) -> None:
    """Print a run's pictures with their scores, and by whom, as a table, then the other files and the seconds."""
    from rich.table import Table

    judged = any("scorer_score" in picture for picture in report["images"])
    table = Table(
        "picture", *(["shows the prompt", "scorer"] if judged else []), "CLIP score", box=None, header_style="bold"
    )
    for picture in report["images"]:
        score = picture.get("scorer_score")
        said = ["", ""] if score is None else [picture["verdict"] or "", f"{score:.3f}"]
        table.add_row(picture["path"], *(said if judged else []), f"{picture['clip_score']:.3f}")
    print_table(table)
    if "folder" in report and not judged:
        print("the CLIP that scores them guided them too, so a high score need not mean that the prompt is seen")
    elif report.get("prompt") and not any(picture.get("verdict") for picture in report["images"]):
        lacks = "levels for its scorer" if judged else "scorer"
        print(f"the pack has no {lacks}: scores sort the pictures, and do not say whether they show the prompt")
    for picture in report["images"]:
        if "kept_step" in picture:
            print(f"{Path(picture['path']).name}: {_kept(picture, report['steps'])}")
    for key, label in (("sheet", "contact sheet"), ("folder", "run"), ("video", "video")):
        if key in report:
            print(f"{label}: {report[key]}")
    parts = report.get("prompt", [])
    if len(parts) > 1 or "style" in report or any(part["weight"] != 1 for part in parts):
        print("prompt: " + ", ".join(f"{part['text']} (weight {part['weight']:g})" for part in parts))
    print(f"{report['seconds']:.1f} seconds")


def _kept(picture: Mapping[str, Any], steps: int) -> str:
    """Which step of a guided run the scorer kept."""
    start, end = picture["scorer_at_start"], picture["scorer_score"]
    if not picture["kept_step"]:
        return f"as it began (scorer {start:.3f}): none of {steps} steps made it better"
    return f"as after step {picture['kept_step']} of {steps}: scorer {start:.3f} at the start, {end:.3f} now"


def print_table(table: "Table") -> None:
    """Print a table on stdout; where that is no terminal, lines are never wrapped, so that paths stay whole."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, markup=False, emoji=False, highlight=False).print(table, soft_wrap=True)


def check_folder(folder: Path, flag: str = "--out") -> None:
    """Raise CodebrushError if `folder`, which need not exist yet, is a file or read-only; `flag` is what named it."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not existing.is_dir():
        raise CodebrushError(f"cannot write in {folder}: {existing} is a file; name another folder with {flag}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CodebrushError(f"cannot write in {folder}: {existing} is read-only; name another folder with {flag}")
    try:
        tempfile.TemporaryFile(dir=existing).close()  # only trying tells of /proc and of quotas
    except OSError as error:
        reason = f"{existing} takes no files ({error.strerror or error})"
        raise CodebrushError(f"cannot write in {folder}: {reason}; name another folder with {flag}") from error


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A progress on stderr, to be called with (done, total): a bar on a terminal, else one line if it takes long."""
    if not sys.stderr.isatty():
        yield Announcement(label)
        return
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Announcement:
    """Says once how long a task will take, after `SAMPLE_SECONDS` of it, if that is more than `LONG_SECONDS`."""

    def __init__(self, label: str) -> None:
        self.label, self.first, self.total, self.said = label, None, 0, False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None or total != self.total:  # another part of the task counts something else
            self.first, self.total = (now, done), total
        began, before = self.first
        if self.said or done <= before or now - began < SAMPLE_SECONDS:
            return
        left = (now - began) * (total - done) / (done - before)
        self.said = True
        if left > LONG_SECONDS:
            print(f"codebrush: {self.label} takes about {_duration(left)} more", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{round(seconds, -1):.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
