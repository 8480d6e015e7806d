"""Times several implementations of the same work in turn, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternated(title: str, ways: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print the seconds of `rounds` of each way (after one that is not counted), and how the others compare with the
    last: the median of the rounds' ratios, and their range."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{title}, {name}: " + " ".join(f"{value:.3f}" for value in seconds) + " s")
    *others, last = times
    for other in others:
        ratios = [a / b for a, b in zip(times[other], times[last], strict=True)]
        median, least, most = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{title}, {other} / {last}: median {median:.2f}, {least:.2f} to {most:.2f}")
