"""How many CPU threads the processes have that a server starts: its workers, and a training."""

import os

import torch

VARIABLE = "OMP_NUM_THREADS"  # of the environment, which torch and its libraries read when they are imported


def worker_threads(count: int) -> int:
    """Those of each of `count` workers: as many as OMP_NUM_THREADS says, or else its share of the cores."""
    return torch.get_num_threads() if VARIABLE in os.environ else max(1, torch.get_num_threads() // count)


def training_threads() -> int:
    """Half of the cores that the server may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def environment_with_threads(count: int) -> dict[str, str]:
    """The environment of a process that is to have so many."""
    return {**os.environ, VARIABLE: str(count)}
