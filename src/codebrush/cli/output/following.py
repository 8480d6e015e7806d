"""Follows a guided run on the terminal, and keeps with it what is to be done when it ends, also if it is resumed."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.cli.output.printing import check_folder
from codebrush.cli.output.saving import picture_entry
from codebrush.errors import CodebrushError, UsageError
from codebrush.files import write_json

if TYPE_CHECKING:
    from codebrush.generation.guided.run.guided_run import GuidedRun
    from codebrush.pack.pack import Pack

FILE = "afterwards.json"
FPS = 10
FILM_FRAMES = 100  # stored for a video, at least


class Stopped(CodebrushError):
    """The user stopped a run that can be resumed."""

    exit_status = 130


@dataclass(frozen=True)
class Afterwards:
    """What is made of a finished run: a video (its kind or file), and enlarged pictures. None of it changes the run."""

    video: str | None = None
    fps: int = FPS
    between: int | None = None
    upscale: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], folder: Path, *, resumed: bool) -> "Afterwards":
        """What is `given` and not None; of a resumed run else what it began with.

        Raises:
            UsageError: if a video cannot be written there, or what is given is for one that nobody asked for.
            CodebrushError: if what it began with cannot be read.
        """
        before = _read(folder / FILE) if resumed and (folder / FILE).exists() else {}
        found = cls(**{**before, **{name: value for name, value in given.items() if value is not None}})
        if found.video is not None:
            found.video_file(folder)
        elif useless := [name for name in ("fps", "between") if given[name] is not None]:
            raise UsageError(f"--{useless[0]} is for a video: add --video mp4")
        return found

    @property
    def frames(self) -> int:
        """The steps that have to be stored, at least; 0: as many as the options of guidance say."""
        return 0 if self.video is None else FILM_FRAMES

    def video_file(self, folder: Path) -> Path:
        """The file of the video, checked to be one that can be written."""
        from codebrush.generation.videos import check_video, video_path

        path = video_path(str(self.video), folder)
        check_video(path)
        check_folder(path.parent)
        return path


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: values[name] for name in (field.name for field in fields(Afterwards)) if name in values}
    except (OSError, ValueError, TypeError) as error:
        raise CodebrushError(
            f"{path} is damaged ({error}): delete it, and name --video again if you want one"
        ) from None


def run_report(run: "GuidedRun", pack: "Pack", folder: Path, after: Afterwards, *, resumed: bool) -> dict[str, Any]:
    """Take the steps of the run in `folder`, showing them; returns the report of its pictures, best first."""
    from codebrush.generation.advice import warn_of_failure

    def keep() -> None:
        if after != Afterwards() or (folder / FILE).exists():
            write_json(folder / FILE, asdict(after))

    again = f"codebrush generate --resume {shlex.quote(str(folder))}"
    if not follow(run, again, keep) and resumed:
        print(f"codebrush: the run in {folder} was finished already: no step was left to take", file=sys.stderr)
    warn_of_failure(pack, run.request.prompt, run.results)
    images = []
    for result in run.results:
        index = result.manifest["index"]
        image = picture_entry(folder / run.paths[index].name, result)
        if (start := run.starts.get(index)) is not None:
            image |= {"kept_step": result.manifest["steps"], "scorer_at_start": start}
        images.append(image)
    return {"images": images, "folder": str(folder), "steps": run.steps_taken}


def follow(run: "GuidedRun", again: str | None = None, begun: Callable[[], None] = lambda: None) -> int:
    """Take the steps of a run, showing them; returns how many there were. `begun` is called when it has a folder.

    Raises:
        Stopped: by Ctrl-C, with the command `again` to go on with, if there is one and the run has begun.
    """
    from codebrush.cli.output.guided_progress import step_display

    taken, done, steps = 0, 0, iter(run)
    try:
        with closing(steps), step_display(run.request.n) as show:
            for step in steps:
                if not taken:
                    begun()
                taken, done = taken + 1, step.step
                show(step)
    except KeyboardInterrupt:
        if again is None or not run.can_be_resumed:
            raise
        if not taken:
            begun()
        where = f"after step {done}" if done else "before another step"
        raise Stopped(f"stopped {where}; continue with: {again}") from None
    return taken
