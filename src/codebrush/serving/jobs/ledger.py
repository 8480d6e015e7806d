"""The jobs that a server knows: those that live, those in the store, and how each changes its state in both at once."""

import time
from collections import OrderedDict
from threading import Condition

from codebrush.serving.faults import NO_SPACE, disk_is_full
from codebrush.serving.job import Job
from codebrush.serving.jobs.store import Store
from codebrush.serving.log import log, log_failure
from codebrush.serving.metrics import Metrics

KEPT_LAST_SHOWN = 32  # jobs


class Ledger:
    """Jobs in `store`, and while they have not ended in memory too. Under its `lock` their states change."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self.store, self.metrics, self.lock = store, metrics, Condition()
        self.live: dict[str, Job] = {}
        self._unkept: dict[str, Job] = {}  # that ended, and the store could not be told
        self._last_shown: OrderedDict[str, list[bytes]] = OrderedDict()  # of jobs that ended

    def of_kind(self, kind: str) -> list[Job]:
        """The jobs of a kind that have not ended."""
        return [job for job in list(self.live.values()) if job.kind == kind]

    def find(self, job: str, owner: str | None = None) -> Job | None:
        """A job; None if there is none, or it is another caller's (`owner` None: whoever's it is)."""
        found = self._in_memory(job)
        if found is None:
            row = self.store.find(job)
            found = None if row is None else Job.of_row(row, self.store.folder(job))
        return None if found is None or owner not in (None, found.owner) else found

    def jobs_of(self, owner: str, most: int) -> list[Job]:
        """The caller's jobs, latest first, and at most so many."""
        found = ((row, self._in_memory(row["id"])) for row in self.store.of_owner(owner, most))
        return [job or Job.of_row(row, self.store.folder(row["id"])) for row, job in found]

    def _in_memory(self, job: str) -> Job | None:
        return self.live.get(job) or self._unkept.get(job)

    def latest(self, job: str) -> list[bytes]:
        """The latest half-drawn pictures of a job as PNG; also for a while after its end, for those who just saw it."""
        live = self.live.get(job)
        if live is None:
            return self._last_shown.get(job, [])
        return live.shown[-1] if live.shown else []

    def keep_state(self, job: Job) -> None:
        """Tell the store of a job's state as it is now, unless it has ended."""
        with self.lock:
            if not job.ended:
                self.store.change(job.id, state=job.state, started=job.started, attempts=job.attempts)

    def end(self, job: Job, state: str, error: dict[str, str] | None) -> None:
        """Let a job end, and keep how."""
        size = self.store.size(job.id)
        with self.lock:
            job.finished = time.time()
            try:  # first, so that what is told is kept
                self.store.finish(job.id, state, job.finished, size, error=error, result=job.result)
            except Exception as failure:
                log_failure(failure, job=job.id)
                self._unkept[job.id] = job
                if state == "done":
                    state, error, job.result = "failed", unkept(failure, "the result could not be kept"), None
            job.state, job.error = state, error
            if job.shown:
                self._last_shown[job.id] = job.shown[-1]
                while len(self._last_shown) > KEPT_LAST_SHOWN:
                    self._last_shown.popitem(last=False)
            self.live.pop(job.id, None)
        self.metrics.finished(job.kind, state, job.finished - job.created)
        code = {} if error is None else {"error": error["code"]}
        log("job ended", job=job.id, kind=job.kind, state=state, seconds=round(job.finished - job.created, 3), **code)
        job.changed()

    def forget(self, job: Job) -> None:
        """Remove a job that ended, and its files."""
        if job.ended:
            self._unkept.pop(job.id, None)
            self.store.remove(job.id)

    def tidy(self, seconds: float, size: int) -> None:
        """Forget what was kept for `seconds`, and the oldest above `size` bytes; keep what could not be kept before."""
        if gone := self.store.prune(seconds, size):  # first: on a full disk this makes room
            log("jobs forgotten", count=len(gone))
        for job in list(self._unkept.values()):
            assert job.finished is not None
            self.store.finish(
                job.id, job.state, job.finished, self.store.size(job.id), error=job.error, result=job.result
            )
            self._unkept.pop(job.id, None)


def unkept(error: Exception, what: str) -> dict[str, str]:
    """What the caller of a job is told if the store could not be told of it, and `what` came of that."""
    if disk_is_full(error):
        return dict(NO_SPACE)
    return {"code": "internal_error", "message": what}
