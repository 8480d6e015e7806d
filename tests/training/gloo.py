"""Runs a function in several real processes that form a group (gloo), as torchrun starts them."""

import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.distributed as dist


def run_together(
    processes: ForkServerContext, count: int, work: Callable[..., None], *given: Any, seconds: float = 300
) -> list[int | None]:
    """Call `work(rank, *given)` in `count` processes, and return how each ended; those that take longer are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [processes.Process(target=_join, args=(rank, count, port, work, given)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(seconds)
        process.kill()
    return [process.exitcode for process in started]


def _join(rank: int, count: int, port: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    values = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}
    more = {"LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "none"}
    os.environ.update({name: str(value) for name, value in {**values, **more}.items()})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work(rank, *given)
    dist.destroy_process_group()
