"""Draws batches side by side, each on a thread of its own, where that is faster than to share each product.

A step of a small network is some hundred small products, and nothing is gained by dividing each of them among PyTorch's
threads. So a batch is cut into parts of some rows, and each part is drawn on one thread, beside the others.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextvars import copy_context
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar

import torch
import torch.distributed as dist

from codebrush.generation.sampling.weighted_conditions import MAX_ROWS
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.process_memory import trim_memory
from codebrush.progress import Progress

T = TypeVar("T")
SMALL = 1 << 25  # weights: beyond, reading them takes the time, and a step gains by all threads
ROWS_EACH = 8  # at least, of each part: with fewer, Python's own share of a step keeps the threads apart
AT_ONCE = 2 * MAX_ROWS  # rows in all batches that are drawn beside each other: each row's keys and values take memory


class _StoppedError(Exception):
    """Ends a part's drawing because another one failed or was interrupted."""


def is_small(weights: int, device: torch.device) -> bool:
    """Whether a network of so many weights gains nothing by dividing its products among the threads of this device."""
    return device.type == "cpu" and weights <= SMALL


def draws_side_by_side(network: CodeTransformer | FlowTransformer) -> bool:
    """Whether batches of this network are drawn on one thread each; not where processes take its steps together."""
    return (
        is_small(network.config.linear_weights, network.device)
        and not (dist.is_available() and dist.is_initialized())
        and not torch.is_autocast_enabled("cpu")  # which holds for one thread alone
    )


def parts_of(rows: int, each: int = ROWS_EACH) -> int:
    """Into how many parts a batch of so many rows is cut, of at least `each` rows."""
    return max(1, min(torch.get_num_threads(), rows // each))


def most_rows() -> int:
    """How many rows one of the batches may have that are drawn beside each other."""
    return max(ROWS_EACH, min(MAX_ROWS, AT_ONCE // torch.get_num_threads()))


def slices_of(count: int, parts: int) -> list[slice]:
    """`count` rows in up to `parts` slices of nearly the same length, none empty."""
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(first, end) for first, end in pairwise(ends) if end > first]


def run_side_by_side(jobs: Sequence[Callable[[Progress], T]], progress: Progress | None) -> list[T]:
    """Run each job on one thread of PyTorch, as many at a time as PyTorch has threads here -> their results, in order.
    If it has one here, they run in this thread.

    Each job reports all of its steps to the progress that it is given, which may raise to end it; `progress` gets
    their sum, one call at a time. What a job raises is raised here, once all jobs have ended.
    """
    stop, reporting = threading.Event(), threading.Lock()
    done, totals = [0] * len(jobs), [0] * len(jobs)

    def progress_of(number: int) -> Progress:
        def report(step: int, steps: int) -> None:
            if stop.is_set():
                raise _StoppedError
            if progress is None:
                return
            with reporting:
                totals[:] = [each or steps for each in totals]  # the jobs are alike
                done[number], totals[number] = step, steps
                progress(sum(done), sum(totals))

        return report

    if torch.get_num_threads() == 1:
        return [job(progress_of(number)) for number, job in enumerate(jobs)]
    running: list[Future[T]] = []
    try:
        for number, job in enumerate(jobs):
            running.append(_WORKERS.submit(job, progress_of(number), min(torch.get_num_threads(), len(jobs))))
        wait(running, return_when=FIRST_EXCEPTION)
    finally:
        stop.set()
        wait(running)
    trim_memory()  # what the workers freed is of no use to this thread
    errors = (error for future in running if (error := future.exception()) is not None)
    failed = next((error for error in errors if not isinstance(error, _StoppedError)), None)
    if failed is None:
        return [future.result() for future in running]
    try:
        raise failed
    finally:  # the error holds this frame with all that was drawn: it must not be held by it
        del failed, errors, running


class _Workers:
    """Threads in each of which PyTorch has one thread. They are kept, and end with the process without being waited
    for."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.count = 0
        self.starting = threading.Lock()

    def submit(self, job: Callable[[Progress], T], progress: Progress, workers: int) -> "Future[T]":
        """Let one of at least so many workers, and at most one a core, run a job as if it were in this thread."""
        self._start(min(workers, os.cpu_count() or 1))
        context, future = copy_context(), Future[T]()

        def task() -> None:
            try:
                future.set_result(context.run(job, progress))
            except BaseException as error:
                future.set_exception(error)

        self.tasks.put(task)
        return future

    def _start(self, count: int) -> None:
        with self.starting:
            if self.count >= count:
                return
            here = torch.get_num_threads()
            try:
                while self.count < count:
                    ready = threading.Event()
                    threading.Thread(target=self._work, args=(ready,), name="codebrush-codes", daemon=True).start()
                    self.count += 1
                    ready.wait()
            finally:
                torch.set_num_threads(here)  # the last number set is what a new thread begins with

    def _work(self, ready: threading.Event) -> None:
        torch.get_num_threads()  # at its first such call a thread takes over the last number set
        torch.set_num_threads(1)
        ready.set()
        while True:
            self.tasks.get()()


_WORKERS = _Workers()


def _begin_anew() -> None:
    """A child of fork has none of its parent's threads."""
    global _WORKERS
    _WORKERS = _Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
