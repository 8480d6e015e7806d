"""The settings of the training loop: the `loop` of a recipe."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from codebrush.errors import TrainingError
from codebrush.training.field_types import Count, Share, Weight, Whole

# The fields that a run may go on with other values of: where, in how many parts and by which code it is computed.
MACHINES = ("accelerator", "devices", "nodes", "strategy", "accumulate", "checkpoint_activations", "compile")


@dataclass(frozen=True)
class LoopConfig:
    """`batch_size` counts rows over all processes; `precision` "auto" is bf16 on machines that support it.

    `accumulate` cuts the rows of each process into that many parts, one of which is in memory at a time, and adds up
    their gradients: a step still sees `batch_size` rows, and the same batch, of which the parts are cut. What networks
    draw at random, like dropout, each part draws as another process would. The loss of a task that compares rows stays
    that of all rows (see `InPieces`). `checkpoint_activations` saves memory, too: networks compute again, block by
    block, what backward needs of them (see `recompute_blocks`).

    `strategy` says what each process holds: with auto or ddp all weights, with fsdp a part of each (see `shard`).

    `warmup` is in steps, at most a quarter of the run. `threads` 0 leaves PyTorch's choice. `devices` and `nodes` above
    1 train data-parallel. `stop_after` ends the run at that step of its schedule (0: at the last). `compile` compiles
    the networks first (`torch.compile`), which takes a minute or two and makes steps about a fifth faster on a CPU.
    `on_nan` says what becomes of a step whose loss or gradient is infinite or NaN: "stop" ends the run, "skip" leaves
    the step out as if it had not been, and goes on. Each `guard_every` steps (0: never) the network is looked at
    for what goes wrong while its loss looks well; `held_out` pictures, evenly spaced, are kept from training for that.
    """

    steps: Count
    batch_size: Count
    seed: Whole = 0
    warmup: Whole = 100
    clip_norm: Weight = 1.0
    ema_decay: Share = 0.999
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    threads: Whole = 0
    log_every: Count = 50
    checkpoint_every: Count = 500
    preview_every: Whole = 1000
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    devices: Count = 1
    nodes: Count = 1
    strategy: str = "auto"
    stop_after: Whole = 0
    compile: bool = False
    accumulate: Count = 1
    checkpoint_activations: bool = False
    on_nan: Literal["stop", "skip"] = "stop"
    guard_every: Whole = 250
    held_out: Whole = 0

    @property
    def parts(self) -> int:
        """The number of equal parts that the rows of a step are cut into."""
        return self.devices * self.nodes * self.accumulate

    @property
    def last(self) -> int:
        """The step that the run ends at."""
        return min(self.steps, self.stop_after or self.steps)

    @property
    def warmup_steps(self) -> int:
        """The number of steps over which the learning rate rises."""
        return min(self.warmup, max(1, self.steps // 4))

    def with_threads(self, asked: int) -> "LoopConfig":
        """This config with `asked` threads, or where that is 0 its own, or where that too is 0 PyTorch's choice.

        A stored plan goes through this, because another number of threads adds up in another order.
        """
        return replace(self, threads=asked or self.threads or torch.get_num_threads())

    def with_on_nan(self, asked: Literal["stop", "skip"] | None) -> "LoopConfig":
        """This config with `asked` for `on_nan`, or its own where that is None."""
        return replace(self, on_nan=asked or self.on_nan)

    def moved_to(self, other: "LoopConfig") -> "LoopConfig":
        """This config on the machines of `other`: its devices, hosts and strategy, its number of parts, and
        whether it compiles.

        Raises:
            TrainingError: if the rows of a step do not divide by the number of parts there.
        """
        moved = replace(self, **{name: getattr(other, name) for name in MACHINES})
        if self.batch_size % moved.parts:
            raise TrainingError(
                f"the run began with {self.batch_size} rows a step, which do not divide by {moved.parts}, the number "
                "of processes times loop.accumulate: choose others that they divide by"
            )
        return moved
