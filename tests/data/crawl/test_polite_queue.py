"""The queue of requests: never too many to one host or too soon, and no host waits for another."""

import threading
import time
from collections import Counter, defaultdict

import pytest

from codebrush.data.crawl.polite_queue import PoliteQueue


class Workers:
    """Threads that work a queue off: the jobs in the order of their ends, and how many of a host's ran at once at most.

    A job ends when `at_once` of its host are being done.
    """

    def __init__(self, queue: PoliteQueue[str], threads: int, at_once: int) -> None:
        self.queue, self.lock = queue, threading.Lock()
        self.done: list[str] = []
        self.running, self.most = Counter[str](), Counter[str]()
        self.meetings = defaultdict(lambda: threading.Barrier(at_once))
        workers = [threading.Thread(target=self._work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)

    def _work(self) -> None:
        while (job := self.queue.take()) is not None:
            with self.lock:
                self.running[host(job)] += 1
                self.most[host(job)] = max(self.most[host(job)], self.running[host(job)])
                meeting = self.meetings[host(job)]
            meeting.wait(60)
            with self.lock:
                self.running[host(job)] -= 1
                self.done.append(job)
            self.queue.done(job)


def host(job: str) -> str:
    return job[0]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_every_job_is_done_once_and_no_host_has_too_many(at_once: int):
    jobs = [f"{name}{number}" for number in range(6) for name in "ab"]
    workers = Workers(PoliteQueue(jobs, host, at_once, 0.0), 8, at_once)
    assert sorted(workers.done) == sorted(jobs)
    assert workers.most == {"a": at_once, "b": at_once}


def test_requests_to_one_host_keep_their_distance():
    start = time.monotonic()
    queue = PoliteQueue(["a1", "a2", "a3"], host, 3, 0.05)
    assert [queue.take() for _ in range(3)] == ["a1", "a2", "a3"]
    assert time.monotonic() - start >= 0.099


def test_a_host_that_is_waited_for_holds_up_no_other():
    queue = PoliteQueue(["a1", "a2", "b1"], host, 3, 3600.0)
    assert [queue.take() for _ in range(2)] == ["a1", "b1"]


def test_a_slow_host_holds_up_no_other():
    others = [f"b{number}" for number in range(20)]
    queue = PoliteQueue(["a1", "a2", "a3", *others], host, 1, 0.0)
    assert queue.take() == "a1"
    for other in others:  # while that is being done
        assert queue.take() == other
        queue.done(other)
    queue.done("a1")
    assert queue.take() == "a2"


def test_a_job_is_handed_out_again_for_a_retry():
    queue = PoliteQueue(["a1", "b1"], host, 1, 0.0)
    first, second = queue.take(), queue.take()
    assert {first, second} == {"a1", "b1"}
    start = time.monotonic()
    queue.done("a1", again_in=0.05)
    queue.done("b1")
    assert queue.take() == "a1"
    assert time.monotonic() - start >= 0.049
    queue.done("a1")
    assert queue.take() is None


def test_a_host_may_ask_for_more_time():
    queue = PoliteQueue(["a1", "a2", "a3"], host, 1, 0.0)
    start = time.monotonic()
    queue.done(str(queue.take()), delay=0.06)
    queue.done(str(queue.take()), delay=0.06)
    queue.take()
    assert time.monotonic() - start >= 0.119


def test_closing_ends_all_waiting():
    queue = PoliteQueue(["a1", "a2"], host, 1, 0.0)
    queue.take()
    found: list[str | None] = ["nothing yet"]
    waiting = threading.Thread(target=lambda: found.append(queue.take()))
    waiting.start()
    queue.close()
    waiting.join(60)
    assert found[-1] is None
