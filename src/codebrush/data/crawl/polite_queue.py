"""A queue of requests to many hosts that limits how often and how many at once each host is asked."""

import heapq
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

J = TypeVar("J")


@dataclass
class _Host(Generic[J]):
    jobs: list[tuple[float, int, J]] = field(default_factory=list)  # a heap by the earliest time of each
    running: int = 0
    free_at: float = 0.0  # when the next request may begin
    delay: float = 0.0
    is_queued: bool = False  # in `PoliteQueue._turns`


class PoliteQueue(Generic[J]):
    """Hands jobs to threads. No host has more than `at_once` running, and `delay` seconds lie between two starts.

    A thread never waits for one host while another may be asked. `host_of` gives the host of a job.
    """

    def __init__(self, jobs: Iterable[J], host_of: Callable[[J], str], at_once: int, delay: float) -> None:
        self._host_of, self._at_once, self._delay = host_of, at_once, delay
        self._hosts: dict[str, _Host[J]] = {}
        self._turns: list[tuple[float, str]] = []  # a heap of hosts that may start a job, by the earliest time
        self._left = self._count = 0
        self._closed = False
        self._changed = threading.Condition()
        for job in jobs:
            self._add(job, 0.0)
            self._left += 1

    def take(self) -> J | None:
        """Wait for the next job; None once all are done or the queue is closed."""
        with self._changed:
            while self._left and not self._closed:
                now = time.monotonic()
                if not self._turns or self._turns[0][0] > now:
                    self._changed.wait(self._turns[0][0] - now if self._turns else None)
                    continue
                name = heapq.heappop(self._turns)[1]
                host = self._hosts[name]
                host.is_queued = False
                if max(host.free_at, host.jobs[0][0]) > now:  # its delay has grown since it was queued
                    self._queue_host(name)
                    continue
                job = heapq.heappop(host.jobs)[2]
                host.running += 1
                host.free_at = now + max(self._delay, host.delay)
                self._queue_host(name)
                return job
            return None

    def done(self, job: J, delay: float = 0.0, again_in: float | None = None) -> None:
        """Report that a job has ended; `again_in` seconds later it is handed out again, unless None.

        `delay` is the number of seconds between requests that its host asks for.
        """
        with self._changed:
            name = self._host_of(job)
            host = self._hosts[name]
            host.running -= 1
            if delay > host.delay:
                host.free_at += delay - max(self._delay, host.delay) if delay > self._delay else 0
                host.delay = delay
            if again_in is None:
                self._left -= 1
                self._queue_host(name)
            else:
                self._add(job, time.monotonic() + again_in)
            self._changed.notify_all()

    def close(self) -> None:
        """Make every `take` return None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _add(self, job: J, not_before: float) -> None:
        self._count += 1
        name = self._host_of(job)
        heapq.heappush(self._hosts.setdefault(name, _Host()).jobs, (not_before, self._count, job))
        self._queue_host(name)

    def _queue_host(self, name: str) -> None:
        host = self._hosts[name]
        if host.jobs and host.running < self._at_once and not host.is_queued:
            heapq.heappush(self._turns, (max(host.free_at, host.jobs[0][0]), name))
            host.is_queued = True
