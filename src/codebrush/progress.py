"""How a long task reports how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with the units done so far and the units in all


def shares(progress: Progress | None, count: int) -> list[Progress | None]:
    """One progress for each of `count` tasks of equal size, one after the other, which together are the whole."""
    return [None if progress is None else _share(progress, number, count) for number in range(count)]


def _share(progress: Progress, number: int, count: int) -> Progress:
    return lambda done, total: progress(number * total + done, count * total)
