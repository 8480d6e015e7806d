"""Draws batches of codes side by side, each on a thread of its own, where that is faster than to share each product.

A step of a small code transformer is some hundred small products, and nothing is gained by dividing each of them among
PyTorch's threads. So a batch is cut into parts of some rows, and each part is drawn on one thread, beside the others.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist

from codebrush.models.code_transformer import CodeTransformer
from codebrush.process_memory import trim_memory
from codebrush.progress import Progress

T = TypeVar("T")
SMALL = 1 << 25  # weights: beyond, reading them takes the time, and a step gains by all threads
ROWS_EACH = 8  # at least, of each part: with fewer, Python's own share of a step keeps the threads apart

_making = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}  # by number of workers


class _StoppedError(Exception):
    """Ends a part's drawing because another one failed or was interrupted."""


def draws_side_by_side(transformer: CodeTransformer) -> bool:
    """Whether batches of this network are drawn on one thread each; not where processes take its steps together."""
    return (
        transformer.device.type == "cpu"
        and not (dist.is_available() and dist.is_initialized())
        and not torch.is_autocast_enabled("cpu")
        and sum(weight.numel() for weight in transformer.parameters()) <= SMALL
    )


def parts_of(rows: int) -> int:
    """Into how many parts a batch of so many rows is cut."""
    return max(1, min(torch.get_num_threads(), rows // ROWS_EACH))


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
    pool = _pool(torch.get_num_threads())
    running: list[Future[T]] = []
    try:
        running.extend(pool.submit(copy_context().run, job, progress_of(each)) for each, job in enumerate(jobs))
        wait(running, return_when=FIRST_EXCEPTION)
    finally:
        stop.set()
        wait(running)
    errors = [error for future in running if (error := future.exception()) is not None]
    trim_memory()  # what the workers freed is of no use to this thread
    for error in errors:
        if not isinstance(error, _StoppedError):
            raise error
    return [future.result() for future in running]


def _take_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes its number over at the first such call, and not before


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch has one thread; kept, as starting them takes longer than a step."""
    with _making:
        if workers not in _pools:
            here, started = torch.get_num_threads(), threading.Barrier(workers + 1)
            pool = ThreadPoolExecutor(workers, "codebrush-codes", initializer=_take_one_thread)
            for _ in range(workers):
                pool.submit(started.wait)
            started.wait()
            torch.set_num_threads(
                here
            )  # the number is each thread's own, but a new thread begins with the last one set
            _pools[workers] = pool
        return _pools[workers]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a child of fork has none of its parent's threads
