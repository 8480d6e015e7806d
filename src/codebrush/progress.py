"""How a long task reports how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with the units done so far and the units in all
