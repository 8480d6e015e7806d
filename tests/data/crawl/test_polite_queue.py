"""The queue of requests: never too many to one host or too soon, and no host waits for another."""

import itertools
import threading
import time

import pytest

from codebrush.data.crawl.polite_queue import PoliteQueue


def work_off(queue: PoliteQueue[str], threads: int, seconds: float = 0.0) -> list[tuple[float, float, str]]:
    """(begin, end, job) of every job, in the order of their ends."""
    log: list[tuple[float, float, str]] = []

    def work() -> None:
        while (job := queue.take()) is not None:
            begin = time.monotonic()
            time.sleep(seconds)
            log.append((begin, time.monotonic(), job))
            queue.done(job)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(5)
    return log


def host(job: str) -> str:
    return job[0]


def most_at_once(log: list[tuple[float, float, str]], name: str) -> int:
    own = [(begin, end) for begin, end, job in log if host(job) == name]
    return max(sum(begin <= moment < end for begin, end in own) for moment, _ in own)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_every_job_is_done_once_and_no_host_has_too_many(at_once: int):
    jobs = [f"{name}{number}" for number in range(8) for name in "ab"]
    log = work_off(PoliteQueue(jobs, host, at_once, 0.0), threads=8, seconds=0.01)
    assert sorted(job for *_, job in log) == sorted(jobs)
    assert most_at_once(log, "a") == most_at_once(log, "b") == at_once


def test_requests_to_one_host_keep_their_distance():
    log = work_off(PoliteQueue(["a1", "a2", "a3", "b1"], host, 3, 0.05), threads=4)
    begins = sorted(begin for begin, _, job in log if host(job) == "a")
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(begins))
    assert next(begin for begin, _, job in log if job == "b1") - begins[0] < 0.04


def test_a_slow_host_holds_up_no_other():
    jobs = ["a1", "a2", "a3", *(f"b{number}" for number in range(20))]
    log = work_off(PoliteQueue(jobs, host, 1, 0.0), threads=2, seconds=0.01)
    assert sum(job.startswith("b") for *_, job in log[:13]) >= 8


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
    queue.done(str(queue.take()), delay=0.06)
    start = time.monotonic()
    queue.done(str(queue.take()), delay=0.06)
    queue.take()
    assert time.monotonic() - start >= 0.1


def test_closing_ends_all_waiting():
    queue = PoliteQueue(["a1", "a2"], host, 1, 0.0)
    queue.take()
    found: list[str | None] = ["nothing yet"]
    waiting = threading.Thread(target=lambda: found.append(queue.take()))
    waiting.start()
    queue.close()
    waiting.join(2)
    assert found[-1] is None
