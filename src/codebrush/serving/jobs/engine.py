"""The engine: takes jobs, runs them batch by batch, and loses none when the server stops or is killed.

Each lane has a queue and a worker of its own, so that a short question does not wait for a drawing of minutes, nor a
drawing for a training of hours. Within a lane one batch runs at a time.
"""

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codebrush.files import set_aside
from codebrush.pipeline import Codebrush
from codebrush.serving.faults import fault_of
from codebrush.serving.jobs.job import CANCELLING, Job, JobError, QueueFull, Stopped
from codebrush.serving.jobs.ledger import Ledger, unkept
from codebrush.serving.jobs.open_packs import OpenPacks
from codebrush.serving.jobs.queue import FairQueue
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.log import log, log_failure
from codebrush.serving.metrics import Metrics
from codebrush.serving.work.kinds import KINDS, LANES, batch_key
from codebrush.serving.work.library import library_kinds
from codebrush.serving.work.training import Trainer
from codebrush.warned import heard

LAST_STEP = 30.0  # seconds that a step is waited for when the server stops
TIDY_SECONDS = 60.0  # between two looks at what has been kept for long enough
MOST_ATTEMPTS = 2  # starts of a job, after which one that kills the server is given up


@dataclass(frozen=True)
class Limits:
    """What the engine takes and keeps. Times are in seconds."""

    queue: int = 64  # jobs that wait, in each lane
    batch: int = 16  # jobs that are drawn together
    seconds: float = 900.0  # that a job may run
    keep_seconds: float = 24 * 3600.0  # after which what came of a job is forgotten
    keep_bytes: int = 2 * 1024**3  # of all results; the oldest go first
    budget: float = 8 * 3600.0  # of a training
    train_threads: int = 0  # CPU threads of a training; 0: half of the cores

    @property
    def reserve(self) -> int:
        """Places of the queue for callers who have no job in it."""
        return self.queue // 8


class Engine:
    """Runs jobs with `packs`: name -> a function that opens it, called once. `start` it, `stop` it at the end.

    Jobs that another server left in the store are taken up first. `library` has the folders that jobs may read; packs
    that are trained on them are added to `packs`, and draw with `weights` (see `Codebrush.from_pretrained`).
    """

    def __init__(
        self,
        packs: Mapping[str, Callable[[], Codebrush]],
        store: Store,
        limits: Limits = Limits(),
        metrics: Metrics | None = None,
        library: Library | None = None,
        weights: str = "auto",
    ) -> None:
        self.packs, self.store, self.limits = dict(packs), store, limits
        self.library = Library((), store.data) if library is None else library
        self.trainer = Trainer(self.library, self.packs, store.data, limits.train_threads, weights)
        self.kinds = {**KINDS, **library_kinds(self.library), **self.trainer.kinds()}
        self.metrics = Metrics() if metrics is None else metrics
        self._open = OpenPacks(self.packs)
        self._jobs = Ledger(store, self.metrics)
        self._lock = self._jobs.lock
        self._queues = {lane: FairQueue(lambda job: batch_key(self.kinds, job)) for lane in LANES}
        self._stopping = self._abandoned = False
        self._stop_began = 0.0  # of time.monotonic(); 0 before
        self._seconds = {lane: deque([2.0], maxlen=20) for lane in LANES}  # that each of the last jobs took
        self._workers = [
            threading.Thread(target=self._work, args=(lane,), name=f"codebrush-{lane}", daemon=True) for lane in LANES
        ]
        self._workers.append(threading.Thread(target=self._tidy, name="codebrush-tidy", daemon=True))
        self._recover()

    def start(self) -> None:
        """Begin to work."""
        for worker in self._workers:
            worker.start()

    def _recover(self) -> None:
        """Take up the jobs that a server left behind."""
        self.store.sweep()
        for row in self.store.unfinished():
            job = Job.of_row(row, self.store.folder(row["id"]))
            self._jobs.live[job.id] = job
            if row["state"] == CANCELLING:
                self._jobs.end(job, "cancelled", None)
            elif job.attempts >= MOST_ATTEMPTS:
                self._jobs.end(job, "failed", {"code": "server_stopped", "message": _GIVEN_UP})
            elif job.pack not in self.packs or job.kind not in self.kinds:
                gone = f"the server was started again without the pack '{job.pack}'"
                self._jobs.end(job, "failed", {"code": "model_not_found", "message": gone})
            else:
                job.state = "queued"
                self._queue_of(job.kind).add(job)
            log("job resumed" if not job.ended else "job given up", job=job.id, kind=job.kind)
        self._try_to_forget()
        self._count()

    def begin_stop(self) -> None:
        """Take and begin no more jobs. What waits is left to the next start."""
        with self._lock:
            self._stopping = True
            self._stop_began = self._stop_began or time.monotonic()
            self._lock.notify_all()

    def stop(self, grace: float = 30.0) -> None:
        """Finish what runs within `grace` seconds of `begin_stop`, or leave it to be resumed by the next start."""
        self.begin_stop()
        alive = [worker for worker in self._workers if worker.is_alive()]
        for worker in alive:
            worker.join(max(0.0, self._stop_began + grace - time.monotonic()))
        self._abandoned = True  # the work notices at its next step
        until = time.monotonic() + LAST_STEP
        for worker in alive:
            worker.join(max(0.0, until - time.monotonic()))
        self.store.close()

    def brush(self, pack: str, lane: str = LANES[0]) -> Codebrush:
        """A pack, opened at first use; each lane has its own, with the same weights. Raises JobError for one that is
        not served."""
        return self._open.brush(pack, lane)

    def delete_pack(self, name: str) -> None:
        """Delete a pack that was trained here, or a stopped training. Raises JobError if it is in use, or given."""
        with self._lock:
            if any(name in (job.pack, job.request.get("name")) for job in list(self._jobs.live.values())):
                raise JobError("in_use", f"jobs need '{name}': cancel them first")
            removed = self.trainer.set_aside(name)
        self._open.close(name)
        for folder in removed:
            shutil.rmtree(folder, ignore_errors=True)

    def delete_index(self, index: str) -> None:
        """Delete an index of the library. Raises JobError if there is none, or its place is being indexed."""
        with self._lock:
            about = self.library.index(index)
            if any(job.request["folder"] == about["folder"] for job in self.live("index")):
                raise JobError("in_use", f"'{about['folder']}' is being indexed: cancel that first")
            removed = set_aside(self.library.indexes / index)
        shutil.rmtree(removed, ignore_errors=True)

    def plain(self, text: str) -> str:
        """A message without the paths of this machine, as callers get it."""
        return self.trainer.plain(self._open.without_paths(text))

    def live(self, kind: str) -> list[Job]:
        """The jobs of a kind that have not ended."""
        return self._jobs.of_kind(kind)

    def _queue_of(self, kind: str) -> FairQueue:
        return self._queues[self.kinds[kind].lane]

    @property
    def stopping(self) -> bool:
        """Whether it takes no more jobs."""
        return self._stopping

    @property
    def waiting(self) -> int:
        """How many jobs are in the queues."""
        return sum(map(len, self._queues.values()))

    def submit(
        self, kind: str, pack: str, request: dict[str, Any], owner: str, files: Mapping[str, bytes] | None = None
    ) -> Job:
        """Take a job; `files` are stored in its folder.

        Raises:
            QueueFull: if the queue of its lane has no place for it.
            JobError: if there is no such pack, or the server is about to stop.
        """
        self.brush(pack)
        job = Job(kind, pack, owner, request, self.store.data)
        job.folder = self.store.folder(job.id)
        with self._lock:
            self._admit(job)  # before anything is written for one that is refused
        try:
            job.folder.mkdir(parents=True)
            for name, content in (files or {}).items():
                (job.folder / name).write_bytes(content)
            with self._lock:
                self._admit(job)
                self._jobs.live[job.id] = job
                self.store.add(job.row())
                self._queue_of(kind).add(job)
                self._count()
                self._lock.notify_all()
        except BaseException:
            self._jobs.live.pop(job.id, None)
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        return job

    def _admit(self, job: Job) -> None:
        """Raise JobError for a job that is not taken as things are. The lock is held."""
        if self._stopping:
            raise JobError("server_stopping", "the server is about to stop: try again soon")
        if job.pack not in self.packs:
            raise self._open.missing(job.pack)
        self.kinds[job.kind].admit(job.request, self.live(job.kind))
        queue = self._queue_of(job.kind)
        if self.limits.queue - len(queue) <= (self.limits.reserve if queue.waits(job.owner) else 0):
            self.metrics.refused.inc()
            raise QueueFull(self._wait(self.kinds[job.kind].lane))

    def find(self, job: str, owner: str | None = None) -> Job | None:
        """A job; None if there is none, or it is another caller's (`owner` None: whoever's it is)."""
        return self._jobs.find(job, owner)

    def jobs_of(self, owner: str, most: int) -> list[Job]:
        """The caller's jobs, latest first, and at most so many."""
        return self._jobs.jobs_of(owner, most)

    def latest(self, job: str) -> list[bytes]:
        """The latest half-drawn pictures of a job as PNG; also for a while after its end, for those who just saw it."""
        return self._jobs.latest(job)

    def cancel(self, job: Job) -> None:
        """Take a waiting job out of the queue, or let a running one stop after its next step; not one that ended.

        A running job is `cancelling` until nothing works on it any more, such as the process of a training that saves.
        """
        with self._lock:
            if job.ended or job.cancelled:
                return
            waited = job.state == "queued"  # also what is left to the next start
            self._queue_of(job.kind).remove(job)
            job.cancelled, job.state = True, CANCELLING
            self._count()
        if waited:
            self._jobs.end(job, "cancelled", None)
            return
        try:
            self._jobs.keep_state(job)
        except Exception as error:  # such as a full disk: it is cancelled all the same
            log_failure(error, job=job.id)
        job.changed()

    def forget(self, job: Job) -> None:
        """Remove a job that ended, and its files."""
        self._jobs.forget(job)

    def leave(self, job: Job) -> None:
        """The caller of a job went away: cancel it, unless it is the server that goes."""
        if not self._stopping:
            self.cancel(job)

    def _work(self, lane: str) -> None:
        queue = self._queues[lane]
        while True:
            with self._lock:
                while not self._stopping and not len(queue):
                    self._lock.wait()
                if self._stopping:
                    return
                batch = queue.take(self.limits.batch)
                for job in batch:
                    job.state, job.started, job.attempts = "running", time.time(), job.attempts + 1
                self._count()
            what = _NOT_BEGUN
            try:
                for job in batch:
                    self._jobs.keep_state(job)
                    job.changed()
                what = _NOT_KEPT
                self._run(batch)
                self._forget_old()
            except Exception as error:  # such as a full disk: the worker must outlive it
                log_failure(error)
                for job in batch:
                    if not job.ended:
                        self._jobs.end(job, "failed", unkept(error, what))

    def _run(self, batch: Sequence[Job]) -> None:
        """Work on a batch. If it fails, each of its jobs is tried alone, so that only the one to blame fails."""
        began, kind = time.time(), self.kinds[batch[0].kind]
        if all(job.cancelled for job in batch):
            self._leave(batch)
            return
        self.metrics.batch.observe(len(batch))
        try:
            brush = self.brush(batch[0].pack, kind.lane)
            with heard(lambda text, number: _tell(batch, self.plain(text), number)):
                results = kind.run(brush, batch, lambda step, of: self._progress(batch, step, of))
        except Stopped:
            self._leave(batch)
        except Exception as error:
            waiting = [job for job in batch if not job.ended]
            if len(batch) > 1:
                for job in waiting:
                    job.begin_again()
                    self._run([job])
            elif waiting:
                job = waiting[0]
                self._jobs.end(job, "failed", fault_of(error, self.plain, job=job.id, kind=job.kind))
        else:
            for job, result in zip(batch, results, strict=True):
                if not job.ended:
                    job.result = {**result, "warnings": job.warnings}
                    self._jobs.end(job, "done", None)
            self._seconds[kind.lane].append((time.time() - began) / len(batch))

    def _progress(self, batch: Sequence[Job], step: int, of: int) -> None:
        """Called by the work after each step. Raises Stopped when nobody waits for any of the jobs; what is left of
        them ends when the work has."""
        long = self.kinds[batch[0].kind].long
        for job in batch:
            if job.ended:
                continue
            allowed = self.limits.seconds * len(batch)
            job.late = job.late or (not long and step < of and time.time() - (job.started or 0) > allowed)
            if not (job.cancelled or job.late):
                job.progress(step, of)
            elif len(batch) > 1:  # the others go on
                self._end_unfinished(job)
        if self._abandoned or (long and self._stopping) or all(job.ended or job.cancelled or job.late for job in batch):
            raise Stopped

    def _end_unfinished(self, job: Job) -> None:
        """End a job that was cancelled or took too long."""
        late = f"it took longer than the limit of {self.limits.seconds:g} s: ask for less"
        error = None if job.cancelled else {"code": "time_limit", "message": late}
        self._jobs.end(job, "cancelled" if job.cancelled else "failed", error)

    def _leave(self, batch: Sequence[Job]) -> None:
        """Let the next start of the server go on with what has not ended; that it was stopped counts as no attempt."""
        for job in batch:
            with self._lock:
                left = not (job.ended or job.cancelled or job.late)
                if left:
                    job.state, job.attempts = "queued", job.attempts - 1
            if left:
                self._jobs.keep_state(job)
                job.changed()
            elif not job.ended:
                self._end_unfinished(job)

    def _tidy(self) -> None:
        """Forget what has been kept for long enough, also when nobody calls, until the server stops."""
        while True:
            with self._lock:
                until = time.monotonic() + TIDY_SECONDS
                while not self._stopping and (left := until - time.monotonic()) > 0:
                    self._lock.wait(left)
                if self._stopping:
                    return
            self._try_to_forget()

    def _try_to_forget(self) -> None:
        try:
            self._forget_old()
        except Exception as error:  # such as a full disk
            log_failure(error)

    def _forget_old(self) -> None:
        self._jobs.tidy(self.limits.keep_seconds, self.limits.keep_bytes)

    def _wait(self, lane: str) -> int:
        """In how many seconds the queue of a lane may have a place."""
        seconds = self._seconds[lane]
        return max(1, round(sum(seconds) / len(seconds)))

    def _count(self) -> None:
        self.metrics.queue.set(self.waiting)


_NOT_BEGUN = "it was not begun, as the server could not keep that it was: ask again"
_NOT_KEPT = "the server could not keep how far it is: ask again"
_GIVEN_UP = f"the server was killed {MOST_ATTEMPTS} times while this job ran, so it is not tried again"


def _tell(batch: Sequence[Job], text: str, number: int | None) -> None:
    """Keep a warning for the job of a batch that it is about; for all if none is named."""
    for job in batch if number is None or len(batch) == 1 else [batch[number]]:
        job.warn(text)
