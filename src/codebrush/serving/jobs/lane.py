"""A lane: the jobs that wait for the same workers, and how many of these are free."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from codebrush.serving.job import Job
from codebrush.serving.jobs.queue import FairQueue
from codebrush.serving.work.kinds import INDEX, SPREAD, Kind, batch_key
from codebrush.serving.workers.here import Here
from codebrush.serving.workers.task import Workers


class Lane:
    """Its jobs are worked on by those of `workers` with the given `numbers`. `draws_codes` is as in `batch_key`. The
    engine's lock is held around all."""

    def __init__(
        self,
        name: str,
        kinds: Mapping[str, Kind],
        draws_codes: Callable[[str], bool],
        workers: Workers,
        numbers: Sequence[int],
    ) -> None:
        self.name, self.workers, self.numbers = name, workers, numbers
        self.queue = FairQueue(lambda job: batch_key(kinds, job, draws_codes))
        self.busy = 0  # workers
        self._seconds = deque([2.0], maxlen=20)  # that each of the last jobs took

    @classmethod
    def of(
        cls, name: str, kinds: Mapping[str, Kind], draws_codes: Callable[[str], bool], workers: Workers | None
    ) -> "Lane":
        """A lane of a server with these workers; None if its own process does all. An index is made by one."""
        if workers is None or name not in SPREAD:
            return cls(name, kinds, draws_codes, Here(kinds), [0])
        return cls(name, kinds, draws_codes, workers, [0] if name == INDEX else range(len(workers.names)))

    def is_next(self, number: int) -> bool:
        """Whether there is work for a worker."""
        return bool(len(self.queue)) and self.workers.is_ready(number)

    def take(self, most: int) -> list[Job]:
        """The next batch, for a worker that is busy from now on. What waits is shared out among the free ones."""
        free = sum(map(self.workers.is_ready, self.numbers)) - self.busy
        self.busy += 1
        return self.queue.take(min(most, -(-len(self.queue) // max(1, free))))

    def done(self, seconds: float) -> None:
        """A job took so long."""
        self._seconds.append(seconds)

    @property
    def wait(self) -> int:
        """In how many seconds the queue may have a place."""
        return max(1, round(sum(self._seconds) / len(self._seconds) / len(self.numbers)))
