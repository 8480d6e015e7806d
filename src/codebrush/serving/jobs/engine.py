"""The engine: takes jobs, runs them batch by batch, and loses none when the server stops or is killed.

Each lane has a queue and a worker of its own, so that a short question does not wait for a drawing of minutes, nor a
drawing for a training of hours. Within a lane one batch runs at a time, or one of each worker where there are several.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from codebrush.files import set_aside
from codebrush.generation.sampling.painters import usual_painter
from codebrush.pipeline import Codebrush
from codebrush.serving.faults import not_deleted
from codebrush.serving.job import CANCELLING, Job, JobError, QueueFull
from codebrush.serving.jobs.lane import Lane
from codebrush.serving.jobs.ledger import Ledger, unkept
from codebrush.serving.jobs.limits import Limits
from codebrush.serving.jobs.running import MOST_ATTEMPTS, Running
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.log import log, log_failure
from codebrush.serving.metrics import Metrics
from codebrush.serving.work.kinds import KINDS, LANES
from codebrush.serving.work.library import library_kinds
from codebrush.serving.work.open_packs import OpenPacks
from codebrush.serving.work.training import Trainer
from codebrush.serving.workers.here import Here
from codebrush.serving.workers.task import Workers

LAST_STEP = 30.0  # seconds that a step is waited for when the server stops
LAST_WORD = 5.0  # seconds to keep what became of those whose worker was ended
TIDY_SECONDS = 60.0  # between two looks at what has been kept for long enough


class Engine:
    """Runs jobs with `packs`: name -> a function that opens it, called once. `start` it, `stop` it at the end.

    Jobs that another server left in the store are taken up first. `library` has the folders that jobs may read; packs
    that are trained on them are added to `packs`, and draw with `weights` (see `Codebrush.from_pretrained`). `workers`
    do the work, or if there are none this process.
    """

    def __init__(
        self,
        packs: Mapping[str, Callable[[], Codebrush]],
        store: Store,
        limits: Limits = Limits(),
        metrics: Metrics | None = None,
        library: Library | None = None,
        weights: str = "auto",
        workers: Workers | None = None,
    ) -> None:
        self.packs, self.store, self.limits = dict(packs), store, limits
        self.library = Library((), store.data) if library is None else library
        self.trainer = Trainer(self.library, self.packs, store.data, limits.train_threads, weights)
        self.kinds = {**KINDS, **library_kinds(self.library), **self.trainer.kinds()}
        self.metrics = Metrics() if metrics is None else metrics
        self._open = OpenPacks(self.packs)
        self._jobs = Ledger(store, self.metrics)
        self._lock = self._jobs.lock
        self._workers: Workers = Here(self.kinds) if workers is None else workers
        self._lanes = {name: Lane.of(name, self.kinds, self._draws_codes, workers) for name in LANES}
        self._running = Running(self._jobs, self.kinds, limits, self.metrics, self.brush, self.plain)
        self._stop_began = 0.0  # of time.monotonic(); 0 before
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, args=(lane, number), name=f"codebrush-{lane.name}", daemon=True)
            for lane in self._lanes.values()
            for number in lane.numbers
        ]
        self._threads.append(threading.Thread(target=self._tidy, name="codebrush-tidy", daemon=True))
        self._recover()

    def start(self) -> None:
        """Begin to work."""
        for name in self._workers.names:
            self.metrics.worker_ready.labels(name).set(False)
        self._workers.start(self._changed)
        for thread in self._threads:
            thread.start()

    def _changed(self, number: int, ready: bool) -> None:
        """A worker is ready, or has died."""
        name = self._workers.names[number]
        self.metrics.worker_ready.labels(name).set(ready)
        if not ready:
            self.metrics.worker_deaths.labels(name).inc()
        with self._lock:
            self._lock.notify_all()

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
                self._lane_of(job.kind).queue.add(job)
            log("job resumed" if not job.ended else "job given up", job=job.id, kind=job.kind)
        self._try_to_forget()
        self._count()

    def begin_stop(self, now: bool = False) -> None:
        """Take and begin no more jobs. What waits is left to the next start; also what runs, if it is to be `now`."""
        with self._lock:
            self._running.stopping = True
            self._running.abandoned = self._running.abandoned or now  # the work notices at its next step
            self._stop_began = self._stop_began or time.monotonic()
            self._lock.notify_all()

    def stop(self, grace: float = 30.0) -> None:
        """Finish what runs within `grace` seconds of `begin_stop`, or leave it to be resumed by the next start. Once
        stopped it stays so."""
        if self._stopped:
            return
        self._stopped = True
        self.begin_stop()
        self._join(self._stop_began + grace)
        self.begin_stop(now=True)
        self._join(time.monotonic() + LAST_STEP)
        self._workers.stop()
        self._join(time.monotonic() + LAST_WORD)
        self._running.leave([job for job in list(self._jobs.live.values()) if job.state == "running"])
        self.store.close()

    def _join(self, until: float) -> None:
        """Wait for the threads to end, `until` then at most."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def brush(self, pack: str, lane: str = LANES[0]) -> Codebrush:
        """A pack, opened at first use; each lane has its own, with the same weights. Raises JobError for one that is
        not served."""
        return self._open.brush(pack, lane)

    def _draws_codes(self, pack: str) -> bool:
        return usual_painter(self.brush(pack).pack) == "sample"

    def delete_pack(self, name: str) -> None:
        """Delete a pack that was trained here, or a stopped training. Raises JobError if it is in use, given, or its
        folders cannot be taken away."""
        with self._lock:
            if any(name in (job.pack, job.request.get("name")) for job in list(self._jobs.live.values())):
                raise JobError("in_use", f"jobs need '{name}': cancel them first")
            removed = self.trainer.set_aside(name)
        self._open.close(name)
        self._workers.close(name)
        for folder in removed:
            shutil.rmtree(folder, ignore_errors=True)

    def delete_index(self, index: str) -> None:
        """Delete an index of the library. Raises JobError if there is none, its place is being indexed, or its folder
        cannot be taken away."""
        with self._lock:
            about = self.library.index(index)
            if any(job.request["folder"] == about["folder"] for job in self.live("index")):
                raise JobError("in_use", f"'{about['folder']}' is being indexed: cancel that first")
            try:
                removed = set_aside(self.library.indexes / index)
            except OSError as error:
                raise not_deleted(f"the index of '{about['folder']}'", error) from error
        shutil.rmtree(removed, ignore_errors=True)

    def plain(self, text: str) -> str:
        """A message without this machine's paths and the command line's flags, as callers get it."""
        return self.trainer.plain(self._open.without_paths(text))

    def live(self, kind: str) -> list[Job]:
        """The jobs of a kind that have not ended."""
        return self._jobs.of_kind(kind)

    def _lane_of(self, kind: str) -> Lane:
        return self._lanes[self.kinds[kind].lane]

    @property
    def stopping(self) -> bool:
        """Whether it takes no more jobs."""
        return self._running.stopping

    @property
    def waiting(self) -> int:
        """How many jobs are in the queues."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    @property
    def workers(self) -> list[bool]:
        """Of each worker, whether it is ready."""
        return [self._workers.is_ready(number) for number in range(len(self._workers.names))]

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
                self._lane_of(kind).queue.add(job)
                self._count()
                self._lock.notify_all()
        except BaseException:
            self._jobs.live.pop(job.id, None)
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        return job

    def _admit(self, job: Job) -> None:
        """Raise JobError for a job that is not taken as things are. The lock is held."""
        if self.stopping:
            raise JobError("server_stopping", "the server is about to stop: try again soon")
        if job.pack not in self.packs:
            raise self._open.missing(job.pack)
        self.kinds[job.kind].admit(job.request, self.live(job.kind))
        lane = self._lane_of(job.kind)
        queue = lane.queue
        if self.limits.queue - len(queue) <= (self.limits.reserve if queue.waits(job.owner) else 0):
            self.metrics.refused.inc()
            raise QueueFull(lane.wait)

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
            self._lane_of(job.kind).queue.remove(job)
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
        if not self.stopping:
            self.cancel(job)

    def _work(self, lane: Lane, number: int) -> None:
        """Give a worker one batch of the lane after the other."""
        while True:
            with self._lock:
                while not self.stopping and not lane.is_next(number):
                    self._lock.wait()
                if self.stopping:
                    return
                batch = lane.take(self.limits.batch)
                for job in batch:
                    job.state, job.started, job.attempts = "running", time.time(), job.attempts + 1
                self._count()
            what = _NOT_BEGUN
            try:
                for job in batch:
                    self._jobs.keep_state(job)
                    job.changed()
                what = _NOT_KEPT
                self._running.run(lane, number, batch)
                self._forget_old()
            except Exception as error:  # such as a full disk: the worker must outlive it
                log_failure(error)
                for job in batch:
                    if not job.ended:
                        self._jobs.end(job, "failed", unkept(error, what))
            finally:
                with self._lock:
                    lane.busy -= 1
                    self._count()  # of what a worker that died has left

    def _tidy(self) -> None:
        """Forget what has been kept for long enough, also when nobody calls, until the server stops."""
        while True:
            with self._lock:
                until = time.monotonic() + TIDY_SECONDS
                while not self.stopping and (left := until - time.monotonic()) > 0:
                    self._lock.wait(left)
                if self.stopping:
                    return
            self._try_to_forget()

    def _try_to_forget(self) -> None:
        try:
            self._forget_old()
        except Exception as error:  # such as a full disk
            log_failure(error)

    def _forget_old(self) -> None:
        self._jobs.tidy(self.limits.keep_seconds, self.limits.keep_bytes)

    def _count(self) -> None:
        self.metrics.queue.set(self.waiting)


_NOT_BEGUN = "it was not begun, as the server could not keep that it was: ask again"
_NOT_KEPT = "the server could not keep how far it is: ask again"
_GIVEN_UP = f"it was killed {MOST_ATTEMPTS} times, each with the server or a worker, so it is not tried again"
