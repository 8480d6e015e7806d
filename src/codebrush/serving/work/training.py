"""Trains packs on pictures of a library, each by `codebrush train` in a process of its own.

So a training can be stopped and resumed, and one that crashes does not take the server along. The packs lie in
DATA/packs, and what is made of an unfinished one beside it in NAME.work.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from codebrush.errors import CodebrushError
from codebrush.files import held_alone, set_aside
from codebrush.pack.pack import PACK_FILE, open_pack
from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.serving import KEY_VARIABLE
from codebrush.serving.faults import NO_SPACE, not_deleted, says_full
from codebrush.serving.job import CANCELLING, Job, JobError, Stopped
from codebrush.serving.library import Library
from codebrush.serving.log import log
from codebrush.serving.threads import environment_with_threads, training_threads
from codebrush.serving.wording import with_fields
from codebrush.serving.work.kinds import TRAIN, Kind
from codebrush.serving.work.library import open_rows
from codebrush.serving.work.training_report import PREVIEWS, Places, kept_previews, last_lines, preview_files
from codebrush.training.packs.places import REQUEST_FILE

LOOK_SECONDS = 1.0  # between two looks at a training
STOP_SECONDS = 50.0  # that a stopped one has to save
FREE = 1024**3  # bytes of disk that must be free when one begins
LOG, REPORT = "training.log", "report.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
NICE = 10  # so that drawings go first


class Trainer:
    """Trains packs into `data` and adds them to `packs` (name -> a function that opens it, to draw with `weights`), one
    at a time, each with `threads` CPU threads (0: half of the cores)."""

    def __init__(
        self,
        library: Library,
        packs: MutableMapping[str, Callable[[], Codebrush]],
        data: Path,
        threads: int = 0,
        weights: str = "auto",
    ) -> None:
        self.library, self.packs, self.threads, self.weights = library, packs, threads or training_threads(), weights
        self.places = Places(data.absolute() / "packs")
        self.given = tuple(packs)  # those that were not trained here
        for folder in sorted(self.places.folder.glob(f"*/{PACK_FILE}")):
            name = folder.parent.name
            if NAME.fullmatch(name) and name not in packs:
                try:
                    self._add(name)
                except CodebrushError:
                    log("pack left out", pack=name)

    def kinds(self) -> Mapping[str, Kind]:
        """The kind of job that trains."""
        return {"train": Kind(partial(_train, self), lane=TRAIN, long=True, admit=self.check_free)}

    def check_free(self, request: Mapping[str, Any], live: Sequence[Job]) -> None:
        """Raise JobError for a training whose name another one has; `live` are those that have not ended."""
        for job in live:
            if job.request["name"] == request["name"]:
                stopping = job.state == CANCELLING
                doing = "being stopped, and saves: try again when it has" if stopping else "being trained"
                raise JobError("name_taken", f"'{request['name']}' is {doing}")
        self.check_name(request["name"], request.get("resume", False))

    def check_name(self, name: str, resume: bool) -> None:
        """Raise JobError for a name that is no name, taken, or of a training that cannot be resumed."""
        if not NAME.fullmatch(name):
            raise JobError("invalid_value", "a pack's name has up to 64 small letters, digits, - and _")
        if name in self.packs or self.places.pack(name).exists():
            raise JobError("name_taken", f"there is a model '{name}' already: choose another name")
        begun = (self.places.work(name) / REQUEST_FILE).is_file()
        if resume and not begun:
            raise JobError("not_in_library", f"there is no stopped training of '{name}'")
        if begun and not resume:
            raise JobError("name_taken", f"there is a stopped training of '{name}': resume it, or choose another name")

    def begun(self, name: str) -> dict[str, Any] | None:
        """What a training that is not finished was asked for; None if there is none of this name."""
        from codebrush.training.packs.request import read_request  # which brings the whole of training along

        first = read_request(self.places.pack(name))
        if first is None:
            return None
        return {
            "name": name, "source": self.library.place(first.source.source), "captions": list(first.source.captions),
            "seconds": first.budget or 0.0, "resume": True,
        }  # fmt: skip

    def report(self, job: Job) -> dict[str, Any]:
        """What there is to say of a training besides its progress."""
        request, done = job.request, job.result or {}
        name = request["name"]
        return {
            "name": name, "source": request["source"], "budget": request["seconds"], "threads": self.threads,
            "curves": self.places.curves(name), "said": [self.plain(line) for line in last_lines(job.folder / LOG)],
            "disk_bytes": self.places.size(name), "can_resume": job.ended and name in self.places.stopped(),
            "verdict": done.get("verdict", []), "stages": done.get("stages", {}),
        }  # fmt: skip

    def pictures(self, job: Job) -> dict[str, Path]:
        """The previews of a training, and the sheets of its pack, by their names."""
        return kept_previews(job.folder) | self.places.sheets(job.request["name"])

    def plain(self, text: str) -> str:
        """A line without the paths of this machine and the flags of the command line."""
        by_name = text.replace(f"{self.places.folder}{os.sep}", "")  # else packs/NAME
        return with_fields(self.library.without_paths(by_name))

    def finish(self, name: str) -> None:
        """Let requests use a pack that was trained."""
        self._add(name)
        log("pack added", pack=name)

    def _add(self, name: str) -> None:
        pack = open_pack(self.places.pack(name), name)
        self.packs[name] = lambda: Codebrush(pack, weights=self.weights)

    def set_aside(self, name: str) -> list[Path]:
        """Take away a pack that was trained here, or what a stopped training has left: hidden folders, to be removed.
        Raises JobError for any other, and if one of them cannot be taken away: all is then as it was."""
        if name in self.given:
            raise JobError("invalid_value", f"the model '{name}' was given with --pack: it is not deleted here")
        opens, aside = self.packs.pop(name, None), dict[Path, Path]()
        try:
            for folder in (self.places.pack(name), self.places.work(name)):
                if folder.is_dir():
                    aside[folder] = set_aside(folder)
        except OSError as error:
            for folder, hidden in aside.items():
                os.replace(hidden, folder)
            if opens is not None:
                self.packs[name] = opens
            raise not_deleted(f"'{name}'", error) from error
        return list(aside.values())


def _train(trainer: Trainer, brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """Train a pack, or go on with one."""
    (job,) = jobs
    name = job.request["name"]
    open_rows(trainer.library, job.request["source"], job.request["captions"])  # in this process, which may refuse it
    out, work = trainer.places.pack(name), trainer.places.work(name)
    out.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(out.parent).free < FREE:
        raise JobError("no_space", "less than 1 GB of disk is free where packs are kept: free some")
    _wait_for(work, lambda: progress(0, max(1, round(job.request["seconds"]))))
    if work.exists() or not (out / PACK_FILE).is_file():
        _run(trainer, _arguments(trainer, brush, job, work), job, progress)
    trainer.finish(name)
    report: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # of a server that was killed just then
        report = json.loads((job.folder / REPORT).read_text(encoding="utf-8"))
    verdict = [trainer.plain(line) for line in report.get("verdict", [])]
    return [{"pack": name, "verdict": verdict, "stages": report.get("stages", {})}]


def _arguments(trainer: Trainer, brush: Codebrush, job: Job, work: Path) -> list[str]:
    request, out = job.request, trainer.places.pack(job.request["name"])
    found = [str(trainer.library.find(request["source"])), "--out", str(out), "--json"]
    if (work / REQUEST_FILE).is_file():
        return [*found, "--resume"]  # which goes on as it was begun
    start = "none" if request["fresh"] else str(brush.pack.folder.absolute())
    found += ["--budget", request["budget"], "--from", start, "--name", request["name"]]
    found += ["--threads", str(trainer.threads), "--seed", str(request["seed"])]
    if request["image_size"] is not None:
        found += ["--image-size", str(request["image_size"])]
    return [*found, *(part for caption in request["captions"] for part in ("--caption", caption))]


def _wait_for(work: Path, look: Callable[[], None]) -> None:
    """Wait for a process of an earlier server to save and end, and `look` meanwhile."""
    until = time.monotonic() + STOP_SECONDS
    while True:
        try:
            with held_alone(work):
                return
        except CodebrushError:
            if time.monotonic() > until:
                raise
            look()
            time.sleep(LOOK_SECONDS)


def _run(trainer: Trainer, arguments: list[str], job: Job, progress: Progress) -> None:
    """Run `codebrush train` to its end. Raises Stopped, once it has saved, when `progress` does."""
    environment = environment_with_threads(trainer.threads)
    environment.pop(KEY_VARIABLE, None)
    command = [sys.executable, "-m", "codebrush.serving.work.attached", "train", *arguments]
    before, began = trainer.places.seconds(job.request["name"]), time.monotonic()
    budget = max(1, round(job.request["seconds"]))
    with (job.folder / LOG).open("a") as said, (job.folder / REPORT).open("w") as report:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=report, stderr=said, env=environment, start_new_session=True
        )
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
        log("training began", job=job.id, process=child.pid, threads=trainer.threads)
        try:
            while child.poll() is None:
                _keep_previews(trainer, job)
                progress(min(round(before + time.monotonic() - began), budget - 1), budget)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_SECONDS)
        except Stopped:
            interrupt(child)
            raise
        finally:
            end_all(child)
    if child.returncode:
        reason = _reason(trainer, job, child.returncode)
        raise JobError(**NO_SPACE) if says_full(reason) else JobError("training_failed", reason)
    _keep_previews(trainer, job)
    progress(budget, budget)


def _keep_previews(trainer: Trainer, job: Job) -> None:
    """Copy the previews that a training has drawn: they go with its work when the pack is written."""
    for name, file in preview_files(trainer.places.work(job.request["name"])).items():
        copy = job.folder / PREVIEWS / name
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            with suppress(OSError):  # it is being written, or gone
                shutil.copyfile(file, copy)


def interrupt(child: "subprocess.Popen[bytes]") -> None:
    """Let a training save, for `STOP_SECONDS` at most."""
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)


def end_all(child: "subprocess.Popen[bytes]") -> None:
    """End a process that has a session of its own, and with it all that it has started."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _reason(trainer: Trainer, job: Job, status: int) -> str:
    """Why a training failed, in the words of its last line."""
    if status < 0:
        return f"the training was killed by the system (signal {-status}): there may be too little memory"
    lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.startswith("codebrush: ")), "it ended without a word")
    return trainer.plain(last.removeprefix("codebrush: "))
