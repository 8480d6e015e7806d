"""Networks whose weights are spread over processes (FSDP2, `loop.strategy` fsdp): each process holds a part of each
weight, of its gradient, of its average and of what the optimizer knows about it. The weights of a block are put
together while it runs, forward and backward.

Some weights every process keeps whole, with gradients averaged as in data-parallel training: numbers alone, which
cannot be cut, and those that a module changes by itself, which it names in `kept_whole`.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codebrush.training.engine.recompute import blocks_of

SHARDED = "fsdp"  # the strategy


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds only a part of it."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def here(tensor: Tensor) -> Tensor:
    """The part of a weight or gradient that this process holds, which shares its memory; a whole one itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; all must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def fill(tensor: Tensor, values: Tensor) -> None:
    """Set `tensor`, or the part of it that this process holds, from all of its values."""
    part = here(tensor)
    if is_sharded(tensor):  # along the first axis, in parts as equal as `torch.chunk` makes them
        mesh = tensor.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        start = -(-len(values) // mesh.size()) * mesh.get_local_rank()
        values = values[start : start + len(part)]
    part.copy_(values)


def untouched(network: nn.Module) -> Tensor:
    """0, as a function of the weights of `network`: added to a loss that leaves some of them out, because processes
    with whole weights wait for the gradients of all. Sharded ones are taken care of by `average_gradients`."""
    weights = (weight for weight in network.parameters() if weight.requires_grad and not is_sharded(weight))
    return 0 * sum((weight.sum() for weight in weights), start=torch.zeros(()))


def shard(network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> list[str]:
    """Spread the weights of `network` over all processes, and let `optimizer`, made for them, go on with the parts;
    returns the names of the weights in the order that it had.

    Blocks, the modules of its lists, are put together one at a time, and what lies outside of them as one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A warning not to change outputs in place, which no loss does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    names = {id(weight): name for name, weight in network.named_parameters()}
    alone = {weight for weight in network.parameters() if weight.ndim == 0}
    for module in network.modules():
        alone |= {getattr(module, name) for name in getattr(module, "kept_whole", ())}
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh, ignored_params=alone)
    fully_shard(network, mesh=mesh, ignored_params=alone)
    parts, groups = dict(network.named_parameters()), []
    for group in optimizer.param_groups:
        weights = [parts[names[id(weight)]] for weight in group["params"]]
        for kind in (True, False):  # kernels over several weights take those of one kind
            if chosen := [weight for weight in weights if is_sharded(weight) is kind]:
                groups.append({**group, "params": chosen})
    order = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
    optimizer.param_groups[:] = groups
    return order


def average_gradients(network: nn.Module) -> None:
    """Average the gradients of the weights that are whole over all processes; those of sharded ones are already.
    Weights that the loss left out get a gradient of 0, as with whole weights."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    found = [weight.grad for weight in trained if weight.grad is not None and not is_sharded(weight)]
    if not found:
        return
    joined = torch.cat([gradient.flatten() for gradient in found])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for gradient, mean in zip(found, joined.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def clip_gradients(network: nn.Module, most: float) -> Tensor:
    """Scale the gradients of `network` down to a norm of `most`, if theirs over all processes is larger; returns the
    norm that they had."""
    weights = [weight for weight in network.parameters() if weight.grad is not None]
    parts = [here(weight.grad) for weight in weights if weight.grad is not None and is_sharded(weight)]
    alone = [weight.grad for weight in weights if weight.grad is not None and not is_sharded(weight)]
    square = _norm(parts, weights).square()
    dist.all_reduce(square)
    norm = (square + _norm(alone, weights).square()).sqrt()
    torch._foreach_mul_([*parts, *alone], (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _norm(tensors: list[Tensor], weights: Iterable[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros((), device=next(iter(weights)).device)
    return torch.stack(torch._foreach_norm(tensors)).norm()


class Outline:
    """A network without its weights, to be made whole again after `network` has been sharded."""

    def __init__(self, network: nn.Module):
        without: dict[int, Any] = {
            id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
            for weight in network.parameters()
        }
        self._empty = copy.deepcopy(network, without)

    def fill(self, network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """A network with `weights`, and with what else the sharded `network` has; the first process gives its buffers
        to all, and all must call this."""
        made, buffers = copy.deepcopy(self._empty), dict(network.named_buffers())
        for buffer in buffers.values():
            dist.broadcast(buffer, src=0)
        state = {}
        for name, value in network.state_dict().items():
            value = weights.get(name, value)
            state[name] = whole(value) if is_sharded(value) else value.clone()
        made.load_state_dict(state, assign=True)
        return made
