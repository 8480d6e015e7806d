"""What the engine and its workers say to each other: tasks one way, events and orders while they are worked on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from codebrush.pack.pack import Pack
from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.serving.job import Job, Stopped
from codebrush.warned import Listener

Results = list[dict[str, Any]]  # one of each job of a batch
# What a worker says: first BEGUN, then ("progress", step, of, how many losses stay, those that follow), ("shown",
# number of the job, PNG files, step), ("warned", text, number), and last ("done", results), ("failed", FaultElsewhere)
# or ("stopped",).
Event = tuple[Any, ...]
BEGUN: Event = ("begun",)
LAST = ("done", "failed", "stopped")
STOP = -1
Order = int  # STOP, or the number of a job of the task that has ended and is left out of what follows


class WorkerLost(Exception):
    """The worker died; nothing is known of what it was working on, but whether it had `begun`."""

    begun = False


class Workers(Protocol):
    """Those who work on batches, each on one batch of each lane at a time. `names` are what figures call them."""

    names: Sequence[str]

    def start(self, changed: Callable[[int, bool], None]) -> None:
        """Begin. From then on `changed` is told, in any thread, of each one that is ready for work, or no longer."""
        ...

    def is_ready(self, number: int) -> bool:
        """Whether one can be given work."""
        ...

    def run(
        self, number: int, lane: str, brush: Codebrush, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        """Let one work on a batch; what `progress` raises stops it. Raises WorkerLost if it dies."""
        ...

    def close(self, pack: str) -> None:
        """Let all forget the models of a pack."""
        ...

    def stop(self) -> None:
        """End."""
        ...


@dataclass(frozen=True)
class PackPlace:
    """A pack as a worker opens it: what callers call it, where it lies, and what its pictures say of that."""

    name: str
    folder: Path
    source: str

    @classmethod
    def of(cls, name: str, pack: Pack) -> "PackPlace":
        """The place of a pack that is open here."""
        return cls(name, pack.folder.absolute(), str(pack.source))


@dataclass(frozen=True)
class Task:
    """A batch of jobs of one kind, as it is sent to a worker."""

    kind: str
    pack: PackPlace
    jobs: list[dict[str, Any]]

    @classmethod
    def of(cls, brush: Codebrush, batch: Sequence[Job]) -> "Task":
        """The task to work on a batch."""
        first, jobs = batch[0], [{**job.row(), "folder": job.folder} for job in batch]
        return cls(first.kind, PackPlace.of(first.pack, brush.pack), jobs)


def follow(
    events: Callable[[], Event],
    order: Callable[[Order], None],
    batch: Sequence[Job],
    progress: Progress,
    tell: Listener,
) -> Results:
    """Bring what a worker says of a task, one of `events` after the other, to the jobs of the batch, and the results.

    Raises:
        FaultElsewhere: if the work failed.
        Exception: what `progress` raised, such as Stopped, when the worker has stopped.
    """
    left_out: set[int] = set()
    raised: Exception | None = None
    begun = False
    while True:
        try:
            event = events()
        except WorkerLost as lost:
            lost.begun = lost.begun or begun
            raise
        begun = True
        match event:
            case "done", results if raised is None or isinstance(raised, Stopped):
                return results
            case "failed", fault:
                raise raised or fault
            case ("stopped",) | ("done", _):
                raise raised or Stopped
        try:
            _pass_on(event, batch, progress, tell)
        except Exception as error:
            if raised is None:
                order(STOP)
            raised = error
        for number in {number for number, job in enumerate(batch) if job.ended} - left_out:
            left_out.add(number)
            order(number)


def _pass_on(event: Event, batch: Sequence[Job], progress: Progress, tell: Listener) -> None:
    match event:
        case "progress", step, of, stay, losses:
            batch[0].losses[stay:] = losses
            progress(step, of)
        case "shown", number, files, step:
            batch[number].show_files(files, step)
        case "warned", text, number:
            tell(text, number)
