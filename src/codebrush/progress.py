"""How a long task reports how far it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Progress = Callable[[int, int], None]  # called with the units done so far and the units in all


@dataclass(frozen=True)
class Preview:
    """Shows half-drawn pictures: `count` times before the end, `show` is called with the prompt's number and a list of
    its pictures (Pillow's)."""

    count: int
    show: Callable[[int, list[Any]], None]

    def due(self, before: int, done: int, total: int) -> bool:
        """Whether a picture is shown after `done` units of `total`, of which `before` were done at the last look:
        evenly, and not at the end."""
        return done < total and (done * (self.count + 1)) // total > (before * (self.count + 1)) // total


def silent(done: int, total: int) -> None:
    """A progress that nobody watches."""


def first_of(progress: Progress | None, some: int, count: int) -> Progress | None:
    """A progress for the first `some` of `count` tasks of equal size, which run at the same time and report in sum."""
    return None if progress is None else lambda done, total: progress(done, total // some * count)


def shares(progress: Progress | None, count: int) -> list[Progress | None]:
    """One progress for each of `count` tasks of equal size, one after the other, which together are the whole."""
    return parts(progress, [1] * count)


def parts(progress: Progress | None, sizes: Sequence[int]) -> list[Progress | None]:
    """One progress for each of the tasks of these relative sizes, one after the other, which together are the whole."""
    return [
        None if progress is None else _part(progress, sum(sizes[:number]), size, sum(sizes))
        for number, size in enumerate(sizes)
    ]


def _part(progress: Progress, before: int, size: int, whole: int) -> Progress:
    return lambda done, total: progress(before * total + size * done, whole * total)
