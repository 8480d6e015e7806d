"""What a training tells while it runs and afterwards: its curves, its previews, what it said and the disk it takes."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codebrush.files import folder_size
from codebrush.training.engine.reporting import METRICS
from codebrush.training.packs.places import CLOCK_FILE, CURVES, RECONSTRUCTIONS, SAMPLES, work_folder
from codebrush.training.registry import ENTRIES

PREVIEWS = "previews"
POINTS = 200  # of a curve, at most
LINES = 30  # of what a training said, the last ones
NOT_SHOWN = re.compile(r"\w+: step \d+/\d+|to go on: ")
SHEETS = (SAMPLES, RECONSTRUCTIONS)


class Places:
    """Where trained packs lie: each a folder of `folder`, and its work beside it until it is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pack(self, name: str) -> Path:
        """The folder of a pack."""
        return self.folder / name

    def work(self, name: str) -> Path:
        """The folder in which it is made."""
        return work_folder(self.pack(name))

    def seconds(self, name: str) -> float:
        """How long an unfinished training has taken, up to its last checkpoint."""
        with suppress(OSError, ValueError, AttributeError):
            return sum(json.loads((self.work(name) / CLOCK_FILE).read_text(encoding="utf-8")).values())
        return 0.0

    def size(self, name: str) -> int:
        """Bytes that a pack and its work take."""
        return folder_size(self.pack(name)) + folder_size(self.work(name))

    def stopped(self) -> list[str]:
        """The names of the packs that are not finished."""
        ending = work_folder(Path("x")).name[1:]
        return sorted(path.name.removesuffix(ending) for path in self.folder.glob(f"*{ending}"))

    def curves(self, name: str) -> dict[str, list[dict[str, float]]]:
        """For each stage the values that it has logged, each with its `step`."""
        found = {}
        for stage in ENTRIES:
            for file in (self.work(name) / stage / METRICS, self.pack(name) / CURVES / f"{stage}.jsonl"):
                with suppress(OSError):
                    found.setdefault(stage, _points(file.read_text(encoding="utf-8")))
        return found

    def sheets(self, name: str) -> dict[str, Path]:
        """The pictures in a finished pack: samples of what it draws, and reconstructions."""
        return {sheet: self.pack(name) / sheet for sheet in SHEETS if (self.pack(name) / sheet).is_file()}


def preview_files(work: Path) -> dict[str, Path]:
    """The previews in a work folder, in the order of stages and steps: STAGE_STEP.png -> file."""
    return {f"{stage}_{file.name}": file for stage in ENTRIES for file in _previews_in(work / stage)}


def _previews_in(folder: Path) -> list[Path]:
    """Those in a folder, which may be removed meanwhile: a work folder becomes the pack."""
    with suppress(OSError):
        return sorted((folder / PREVIEWS).glob("*.png"))
    return []


def kept_previews(folder: Path) -> dict[str, Path]:
    """The previews that were kept in a job's folder, in the same order."""
    order = list(ENTRIES)
    files = sorted(_previews_in(folder), key=lambda file: (order.index(_stage(file.name)), file.name))
    return {file.name: file for file in files}


def _stage(name: str) -> str:
    return name.rpartition("_")[0]


def last_lines(file: Path) -> list[str]:
    """The last lines that a training said, without those of steps, which the curves show, and the command line that
    goes on, which has this machine's paths."""
    with suppress(OSError):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if not NOT_SHOWN.match(line)][-LINES:]
    return []


def _points(text: str) -> list[dict[str, float]]:
    """Up to `POINTS` of the lines of a metrics file, evenly spaced, with the last."""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    every = max(1, -(-len(lines) // POINTS))
    chosen = lines[::-1][::every][::-1]
    points: list[Mapping[str, Any]] = [json.loads(line) for line in chosen]
    return [{name: value for name, value in point.items() if isinstance(value, int | float)} for point in points]
