"""What a worker does in a process of its own: the same work on tasks that are sent to it, with models of its own."""

from collections.abc import Callable, Iterable
from functools import partial

from codebrush.pack.pack import open_pack
from codebrush.pipeline import Codebrush
from codebrush.serving.faults import FaultElsewhere
from codebrush.serving.job import Job, Stopped
from codebrush.serving.library import Library
from codebrush.serving.work.kinds import KINDS
from codebrush.serving.work.library import library_kinds
from codebrush.serving.work.open_packs import OpenPacks
from codebrush.serving.workers.task import BEGUN, STOP, Event, Order, PackPlace, Task
from codebrush.warned import heard


class Worker:
    """Works on tasks, one of each lane at a time, with packs that it opens at first use to draw with `weights`."""

    def __init__(self, library: Library, weights: str) -> None:
        self._weights = weights
        self._kinds = {**KINDS, **library_kinds(library)}
        self._packs: dict[str, Callable[[], Codebrush]] = {}
        self._open = OpenPacks(self._packs)

    def close(self, pack: str) -> None:
        """Forget the models of a pack."""
        self._packs.pop(pack, None)
        self._open.close(pack)

    def work(self, task: Task, say: Callable[[Event], None], orders: Callable[[], Iterable[Order]]) -> None:
        """Work on a task, and `say` what happens; `orders` are those since it was asked for them last."""
        say(BEGUN)
        jobs = [Job(**row) for row in task.jobs]
        for number, job in enumerate(jobs):
            job.listen(partial(_say_shown, say, number, job))

        said = 0  # losses

        def progress(step: int, of: int) -> None:
            nonlocal said
            for order in orders():
                if order == STOP:
                    raise Stopped
                jobs[order].state = "cancelled"  # nothing of it is kept
            stay, said = said, len(jobs[0].losses)
            say(("progress", step, of, stay, jobs[0].losses[stay:]))

        try:
            kind = self._kinds[task.kind]
            with heard(lambda text, number: say(("warned", text, number))):
                results = kind.run(self._brush(task.pack, kind.lane), jobs, progress)
        except Stopped:
            say(("stopped",))
        except Exception as error:
            say(("failed", FaultElsewhere.of(error)))
        else:
            say(("done", results))

    def _brush(self, place: PackPlace, lane: str) -> Codebrush:
        self._packs.setdefault(
            place.name, lambda: Codebrush(open_pack(place.folder, place.source), weights=self._weights)
        )
        return self._open.brush(place.name, lane)


def _say_shown(say: Callable[[Event], None], number: int, job: Job) -> None:
    if job.shown:
        say(("shown", number, job.shown.pop(), job.shown_step))
