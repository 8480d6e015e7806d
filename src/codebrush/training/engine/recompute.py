"""Trades time for memory: what backward needs of a network is computed again instead of being kept."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class InPieces(nn.Module):
    """Runs `network` on one part of the rows after the other. Outputs and gradients are those of one run on all rows,
    unless the network looks at its batch: batch normalisation goes by the part.

    Backward keeps the activations of one part at a time, as in GradCache (Gao et al. 2021): the outputs of all parts
    are computed first, then the loss and its gradients at them, and then each part is run again, with the same random
    numbers, for its share of the gradients. Inputs are tensors with rows in front, each is cut into `pieces` parts, and
    an output is a tensor or a named tuple of them; those without rows must be the same for all parts.
    """

    def __init__(self, network: nn.Module, pieces: int):
        super().__init__()
        self.network, self.pieces = network, pieces

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of `network` for all rows."""
        run = recomputed(self.network, self.network)
        parts = [run(*part) for part in zip(*(rows.tensor_split(self.pieces) for rows in inputs), strict=True)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return type(parts[0])(*(torch.cat(each) if each[0].ndim else each[0] for each in zip(*parts, strict=True)))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules of a network's lists; of lists in lists, those of the inner ones."""
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    return [
        block
        for blocks in lists
        if not any(isinstance(part, nn.ModuleList) for block in blocks for part in block.modules())
        for block in blocks
    ]


def recompute_blocks(network: nn.Module) -> None:
    """Let backward keep what goes into the blocks of `network` (see `blocks_of`), and compute again what they make of
    it."""
    for block in blocks_of(network):
        block.forward = recomputed(block.forward, block)


def keep_all(network: nn.Module) -> nn.Module:
    """`network` as it was before `recompute_blocks`."""
    for part in network.modules():
        part.__dict__.pop("forward", None)
    return network


def recomputed(function: Callable[..., Any], network: nn.Module) -> Callable[..., Any]:
    """`function`, a part of `network`, without what backward needs of it: it runs again then, with the same random
    numbers. Running statistics of `network` are updated the first time only."""
    return partial(checkpoint, function, use_reentrant=False, context_fn=partial(_contexts, network))


def _contexts(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_held(network)


@contextmanager
def _statistics_held(network: nn.Module) -> Iterator[None]:
    """Batch normalisation goes by the batch, as in training, and leaves its running statistics as they are."""
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    held = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in held:
            norm.momentum, norm.num_batches_tracked = momentum, count
