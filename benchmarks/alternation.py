"""Times several implementations of the same work in turn, so that a busy machine slows all of them alike.

`benchmarks/table.py` sets CODEBRUSH_BENCH_ROWS to a file, which gets what was timed as a line of JSON.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

ROWS = "CODEBRUSH_BENCH_ROWS"


def _attention(q: list[int], k: list[int], v: list[int], *_: object, **__: object) -> int:
    return sdpa_flop_count(q, k, v)


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}  # which PyTorch does not count


def alternated(
    title: str,
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    flops: float = 0,
    read: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """The seconds of `rounds` of each way (after one that is not counted); prints them, and how the others compare with
    the last: the median of the rounds' ratios, and their range.

    `flops` is how many operations the work takes, and `read` how many bytes a way must read at least: so the table can
    say how near it is to what the machine can do.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    before = os.getloadavg()[0]
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{title}, {name}: " + " ".join(f"{value:.3f}" for value in seconds) + " s", flush=True)
    *others, last = times
    for other in others:
        ratios = [a / b for a, b in zip(times[other], times[last], strict=True)]
        median, least, most = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{title}, {other} / {last}: median {median:.2f}, {least:.2f} to {most:.2f}", flush=True)
    load = max(before, os.getloadavg()[0])
    note(title=title, times=times, flops=flops, read=dict(read or {}), load=load, threads=torch.get_num_threads())
    return times


def note(**facts: object) -> None:
    """Hand facts to the table, if it asked for them."""
    if ROWS in os.environ:
        with Path(os.environ[ROWS]).open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(facts) + "\n")


def flops_of(way: Callable[[], object]) -> float:
    """The operations of the products, convolutions and attention of some work, counted while it runs once."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        way()
    return counter.get_total_flops()


def bandwidth() -> float:
    """Bytes a second that a sum over a gigabyte reads."""
    numbers, seconds = torch.zeros(1 << 28), []
    for _ in range(4):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return numbers.numel() * 4 / min(seconds)
