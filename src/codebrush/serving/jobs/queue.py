"""Which waiting jobs are next: callers take turns, and what can be drawn together with the first goes with it."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator

from codebrush.serving.job import Job


class FairQueue:
    """Waiting jobs by caller. `group` says which can be drawn together: those of an equal key; None is alone."""

    def __init__(self, group: Callable[[Job], Hashable | None]) -> None:
        self._group = group
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # the caller whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Job]:
        for jobs in self._waiting.values():
            yield from jobs

    def waits(self, owner: str) -> bool:
        """Whether a caller has a job here."""
        return owner in self._waiting

    def add(self, job: Job) -> None:
        """A job at the end of its caller's."""
        self._waiting.setdefault(job.owner, deque()).append(job)

    def put_back(self, job: Job) -> None:
        """A job that was taken, as the next one."""
        self._waiting.setdefault(job.owner, deque()).appendleft(job)
        self._waiting.move_to_end(job.owner, last=False)

    def remove(self, job: Job) -> bool:
        """Take a job out. False if it is not here."""
        jobs = self._waiting.get(job.owner, deque())
        if job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.owner]
        return True

    def take(self, most: int) -> list[Job]:
        """The next job and up to `most` - 1 that can be drawn with it, round by round one of each caller."""
        owner, jobs = next(iter(self._waiting.items()))
        batch = [jobs[0]]
        key = self._group(jobs[0])
        self.remove(jobs[0])
        if owner in self._waiting:
            self._waiting.move_to_end(owner)
        while key is not None and len(batch) < most:
            found = [next((job for job in own if self._group(job) == key), None) for own in self._waiting.values()]
            taken = [job for job in found if job is not None][: most - len(batch)]
            if not taken:
                break
            for job in taken:
                self.remove(job)
            batch += taken
        return batch
