"""How a batch is worked on: what each of its jobs is told meanwhile, and how they end if something goes wrong."""

import time
from collections.abc import Callable, Mapping, Sequence

from codebrush.pipeline import Codebrush
from codebrush.serving.faults import fault_of
from codebrush.serving.job import Job, Stopped
from codebrush.serving.jobs.lane import Lane
from codebrush.serving.jobs.ledger import Ledger
from codebrush.serving.jobs.limits import Limits
from codebrush.serving.metrics import Metrics
from codebrush.serving.work.kinds import Kind
from codebrush.serving.workers.task import WorkerLost

MOST_ATTEMPTS = 2  # starts of a job, after which one that kills the server, or its worker, is given up


class Running:
    """Lets workers work on batches of jobs that `ledger` knows. `brush` opens a pack for a lane, and `plain` takes this
    machine's paths out of a message."""

    def __init__(
        self,
        ledger: Ledger,
        kinds: Mapping[str, Kind],
        limits: Limits,
        metrics: Metrics,
        brush: Callable[[str, str], Codebrush],
        plain: Callable[[str], str],
    ) -> None:
        self._jobs, self._kinds, self._limits, self._metrics = ledger, kinds, limits, metrics
        self._brush, self._plain = brush, plain
        self.stopping = self.abandoned = False  # the server stops; also what is worked on, at its next step

    def run(self, lane: Lane, number: int, batch: Sequence[Job]) -> None:
        """Let a worker work on a batch. If it fails, each of its jobs is tried alone, so that only the one to blame
        fails. If the worker dies, they wait for another."""
        began = time.time()
        if all(job.cancelled for job in batch):
            self.leave(batch)
            return
        self._metrics.batch.observe(len(batch))
        self._metrics.worker_jobs.labels(lane.workers.names[number]).inc(len(batch))
        try:
            brush = self._brush(batch[0].pack, lane.name)
            results = lane.workers.run(
                number, lane.name, brush, batch,
                lambda step, of: self._progress(batch, step, of),
                lambda text, of_job: _tell(batch, self._plain(text), of_job),
            )  # fmt: skip
        except Stopped:
            self.leave(batch)
        except WorkerLost as lost:
            self._worker_lost(lane, batch, lost.begun)
        except Exception as error:
            waiting = [job for job in batch if not job.ended]
            if len(batch) > 1:
                for job in waiting:
                    job.begin_again()
                    self.run(lane, number, [job])
            elif waiting:
                job = waiting[0]
                self._jobs.end(job, "failed", fault_of(error, self._plain, job=job.id, kind=job.kind))
        else:
            for job, result in zip(batch, results, strict=True):
                if not job.ended:
                    job.result = {**result, "warnings": job.warnings}
                    self._jobs.end(job, "done", None)
            with self._jobs.lock:
                lane.done((time.time() - began) / len(batch))

    def _progress(self, batch: Sequence[Job], step: int, of: int) -> None:
        """Called by the work after each step. Raises Stopped when nobody waits for any of the jobs; what is left of
        them ends when the work has."""
        long = self._kinds[batch[0].kind].long
        for job in batch:
            if job.ended:
                continue
            allowed = self._limits.seconds * len(batch)
            job.late = job.late or (not long and step < of and time.time() - (job.started or 0) > allowed)
            if not (job.cancelled or job.late):
                job.progress(step, of)
            elif len(batch) > 1:  # the others go on
                self._end_unfinished(job)
        nobody_waits = all(job.ended or job.cancelled or job.late for job in batch)
        if self.abandoned or (long and self.stopping) or nobody_waits:
            raise Stopped

    def _end_unfinished(self, job: Job) -> None:
        """End a job that was cancelled or took too long."""
        late = f"it took longer than the limit of {self._limits.seconds:g} s: ask for less"
        error = None if job.cancelled else {"code": "time_limit", "message": late}
        self._jobs.end(job, "cancelled" if job.cancelled else "failed", error)

    def leave(self, batch: Sequence[Job]) -> None:
        """Let the next start of the server go on with what has not ended; that it was stopped counts as no attempt."""
        for job in batch:
            with self._jobs.lock:
                left = not (job.ended or job.cancelled or job.late)
                if left and job.state == "running":
                    job.state, job.attempts = "queued", job.attempts - 1
            if left:
                self._jobs.keep_state(job)
                job.changed()
            elif not job.ended:
                self._end_unfinished(job)

    def _worker_lost(self, lane: Lane, batch: Sequence[Job], begun: bool) -> None:
        """Let the jobs of a worker that died be the next ones of the lane, each alone; but not one of two dead ones. If
        it had not `begun` with them, that counts as no attempt."""
        if self.abandoned:
            self.leave(batch)
            return
        for job in reversed(batch):
            if job.ended:
                continue
            with self._jobs.lock:
                job.attempts -= not begun
                again = not (job.cancelled or job.late) and job.attempts < MOST_ATTEMPTS
                if again:
                    job.state = "queued"
                    job.begin_again()
                    lane.queue.put_back(job)
                    self._jobs.lock.notify_all()
            if again:
                self._jobs.keep_state(job)
                job.changed()
            elif job.cancelled or job.late:
                self._end_unfinished(job)
            else:
                self._jobs.end(job, "failed", dict(_WORKER_DIED))


_WORKER_DIED = {
    "code": "worker_died",
    "message": f"the processes that worked on it died {MOST_ATTEMPTS} times: it may take too much memory; ask for less",
}


def _tell(batch: Sequence[Job], text: str, number: int | None) -> None:
    """Keep a warning for the job of a batch that it is about; for all if none is named."""
    for job in batch if number is None or len(batch) == 1 else [batch[number]]:
        job.warn(text)
