"""Random numbers that depend on the seed and a key alone, not on what was drawn before or on who shares the batch.

Every random choice of a run has a key, (picture, purpose, step, ...), so a run that was stopped continues exactly.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a guided picture's random numbers are for; the second part of their key."""

    START = 0
    VIEWS = 1


def stream(seed: int, *key: int) -> np.random.Generator:
    """The random stream of `key` in the run of `seed`. It is a child stream: no two runs share one."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
