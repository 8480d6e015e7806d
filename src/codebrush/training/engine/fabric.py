"""The processes of a training, by Lightning Fabric, which is imported without torchmetrics.

Fabric imports torchmetrics only to compare its version, and that alone brings SciPy, Matplotlib and transformers along:
half of the seconds that the start of a training takes.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.distributed import DistError, get_rank

from codebrush.errors import TrainingError, first_line
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.sharding import SHARDED

T = TypeVar("T")

if "torchmetrics" in sys.modules:
    from lightning_fabric import Fabric
else:
    sys.modules["torchmetrics"] = None  # pyright: ignore[reportArgumentType]  # Python's way to say: cannot be imported
    try:
        from lightning_fabric import Fabric
    finally:
        del sys.modules["torchmetrics"]


def is_first() -> bool:
    """Whether this process is the one that writes files and prints, also where it has not joined the others."""
    if _is_in_group():
        return not get_rank()
    own = "RANK" if "LOCAL_RANK" in os.environ else "SLURM_PROCID"  # of torchrun, or of srun
    return os.environ.get(own, "0") == "0"


def gathered(value: T) -> list[T]:
    """What each process gives, in the order of their ranks; all must call this."""
    if not _is_in_group():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _is_in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def processes_started() -> int:
    """How many processes torchrun, or the first of them, has started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def launch(config: LoopConfig) -> Fabric:
    """Start a process on each device of the config and wait until all have reached this line.

    Processes started here run the same command from its beginning, so nothing that would stop them may be written yet.

    Raises:
        TrainingError: if the devices or the strategy are not available.
    """
    count = config.devices * config.nodes
    started = processes_started()
    if started not in (1, count):
        raise TrainingError(
            f"this is one of {started} processes, but the plan is for {count}: set loop.devices and loop.nodes of "
            f"every recipe to match"
        )
    sharded = config.strategy == SHARDED
    if not (sharded or config.strategy == "auto" or config.strategy.startswith("ddp")):
        raise TrainingError(
            f"loop.strategy '{config.strategy}': strategies other than auto, ddp and fsdp are not available: set it to "
            "one of these"
        )
    if sharded and config.compile:
        raise TrainingError(
            "loop.compile does not work with loop.strategy fsdp: set it to false, or the strategy to ddp"
        )
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="auto" if sharded else config.strategy,  # the loop shards by itself
            # Its own mixed precision forbids gradients that a task takes by itself; see `autocast`.
            precision="32-true",
        )
        fabric.launch()
    except Exception as error:  # each strategy, accelerator and cluster raises its own exceptions
        if config.nodes > 1 and "gloo" in str(error).lower():
            raise TrainingError(
                "the hosts of this training do not reach each other: set GLOO_SOCKET_IFNAME on each to the network "
                f"interface that leads to the others, as `ip addr` lists it ({first_line(error)})"
            ) from error
        raise TrainingError(
            f"loop.accelerator '{config.accelerator}', loop.strategy '{config.strategy}' and loop.devices "
            f"{config.devices} are not available here: {first_line(error)}"
        ) from error
    fabric.barrier()
    return fabric


def tells_of_a_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process does not take part in an exchange any more."""
    # NCCL raises a DistError, gloo nothing of its own
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Raises TrainingError, instead of whatever the exchange with it raises, if another process does not take part any
    more."""
    try:
        yield
    except RuntimeError as error:
        if not tells_of_a_lost_process(error):
            raise
        late = any(line in str(error).lower() for line in ("timed out", "timeout"))
        known = (
            "did not answer in time: it has ended, hangs, or waits for its pictures"
            if late
            else "can no longer be reached, most likely because it has ended"
        )
        raise TrainingError(
            f"another process of this training {known}; this one ends too: look for its message, then run the same "
            "command with --resume"
        ) from error
