"""Commands that are ended by a signal at a random moment, and what must be true afterwards."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import torch
from safetensors.torch import load_file

from codebrush.cli.main import run as command
from codebrush.data.decoding.images import decode_image

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
GROWING = ("losses.jsonl", "metrics.jsonl")  # of which the last line may be half written
HINT = "latest_version_hint.json"  # Lance's, which it does without (tests/search/test_search_database.py)
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143), signal.SIGINT: (130,)}


@dataclass(frozen=True)
class Work:
    """A command that writes into a folder.

    `first` and `again` give its arguments before and after it was ended; `outcome` is what must be the same then as if
    it had been left alone. `ends` are exit statuses of an ended run besides those of Python.
    """

    first: Callable[[Path], Sequence[object]]
    again: Callable[[Path], Sequence[object]]
    outcome: Callable[[Path], Any]
    ends: tuple[int, ...] = ()


def in_process(arguments: list[str], cache: str, log: str, room: int = 0) -> None:
    """A process of its own: the command line, with its messages in a file, and marks where it began and was done.

    `room` is how many bytes of memory it may take beyond what it has; 0: as many as there are.
    """
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = Path(cache)  # pyright: ignore[reportAttributeAccessIssue]
    Path(f"{log}.began").touch()
    if room:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
    status = command(arguments)
    if status == 0:  # the signal may still come while Python ends
        Path(f"{log}.done").touch()
    sys.exit(status)


class Campaign:
    """Ends each of several works at random moments and takes it up again."""

    def __init__(self, works: Mapping[str, Work], folder: Path, processes: ForkServerContext, seed: int):
        self.works, self.folder, self.processes = works, folder, processes
        self.chance = random.Random(seed)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.outcomes: dict[str, Any] = {}  # of the unbroken runs
        self.seconds: dict[
            str, float
        ] = {}  # that a work takes; the least so far, without the first, which fills caches
        self.took = 0.0  # seconds of the last command, from where Python had started

    def outcome(self, name: str) -> Any:
        """What comes of a work that is left alone."""
        if name not in self.outcomes:
            out = self.folder / f"{name}-first"
            assert self.run(self.works[name].first(out), out) == 0, self.said(out)
            self.outcomes[name] = self.works[name].outcome(out)
        return self.outcomes[name]

    def unbroken(self, name: str) -> tuple[float, Any]:
        """How long a work takes that is left alone, and what comes of it."""
        outcome = self.outcome(name)
        if name not in self.seconds:
            out = self.folder / f"{name}-whole"
            assert self.run(self.works[name].first(out), out) == 0, self.said(out)
            assert self.works[name].outcome(out) == outcome, f"{name}: another outcome each time"
            self.seconds[name] = self.took
        return self.seconds[name], outcome

    def end_times(self, name: str, count: int) -> None:
        """End a work so many times; those that were done before the signal came are not counted."""
        number = 0
        while sum(self.counts[name, end.name] for end in set(SIGNALS)) < count:
            number += 1
            self.end_once(name, number)

    def run(
        self,
        arguments: Sequence[object],
        out: Path,
        end: signal.Signals | None = None,
        after: float = 0.0,
        room: int = 0,
        meanwhile: Callable[[], object] | None = None,
    ) -> int:
        """Run a command, which a signal ends after so many seconds; returns its exit status. `meanwhile` is called
        after as many seconds; `room` is as in `in_process`."""
        given = [str(each) for each in arguments], str(self.folder / "cache"), f"{out}.log", room
        process = self.processes.Process(target=in_process, args=given)
        for mark in (began := Path(f"{out}.log.began"), done := Path(f"{out}.log.done")):
            mark.unlink(missing_ok=True)
        process.start()
        while process.is_alive() and not began.exists():  # what a signal does to Python's own start is not ours
            time.sleep(0.001)
        begun = time.monotonic()
        if meanwhile is not None:
            process.join(after)
            meanwhile()
        if end is not None:
            process.join(after)
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, end)
        process.join(300)
        self.took = time.monotonic() - begun
        assert process.exitcode is not None, f"{given[0]} hangs"
        return 0 if end is not None and done.exists() else process.exitcode

    def said(self, out: Path) -> str:
        """All messages about a folder."""
        return Path(f"{out}.log").read_text(encoding="utf-8", errors="replace")

    def end_once(self, name: str, number: int) -> None:
        """End a work once, at a random moment, look at what is left, take it up again, and compare."""
        work, (seconds, outcome) = self.works[name], self.unbroken(name)
        end, after = self.chance.choice(SIGNALS), self.chance.uniform(0, seconds)
        out = self.folder / f"{name}-{number}"
        place = f"{name}, {end.name} after {after:.2f} of {seconds:.2f} s, {out}"
        status = self.run(work.first(out), out, end, after)
        assert status in (0, *ENDS[end], *work.ends), f"{place}: exit status {status}: {self.said(out)}"
        assert "Traceback" not in self.said(out), f"{place}: {self.said(out)}"
        assert half_written(out) == [], place
        self.counts[name, "done before" if status == 0 else end.name] += 1
        if status == 0:
            self.seconds[name] = min(seconds, self.took)
        else:
            assert self.run(work.again(out), out) == 0, f"{place}: {self.said(out)}"
            assert half_written(out) == [], place
        assert work.outcome(out) == outcome, f"{place}: another outcome"
        shutil.rmtree(out)


def half_written(folder: Path) -> list[str]:
    """The files under their final names that cannot be read."""
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and not is_whole(path)]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end; of kinds that are not known, and hidden ones, nothing is asked."""
    if any(part.startswith(".") for part in path.parts[-3:]) or path.name == HINT:
        return True
    try:
        if path.suffix == ".png":
            decode_image(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            for line in lines[:-1] if path.name in GROWING and lines and not lines[-1].endswith("\n") else lines:
                json.loads(line)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".parquet":
            pyarrow.parquet.read_table(path)
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                archive.getmembers()
    except Exception:  # whatever a reader says of a damaged file
        return False
    return True
