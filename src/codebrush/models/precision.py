"""Which device to use, and in what precision it multiplies fastest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from codebrush.errors import UsageError, first_line
from codebrush.models.layers.packed_linear import can_pack, with_packed_linears

N = TypeVar("N", bound=nn.Module)
MANY = 16  # rows of a batch from which packed weights in bfloat16 gain more than the packing costs, at the second one
LARGE = 20_000_000  # weights of linear layers and convolutions from which a network gains by bfloat16


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which matrix products run in bfloat16: always for "bf16" and "bf16-mixed", for "auto" if that is
    faster on `device`, and otherwise not."""
    wanted = precision in ("bf16", "bf16-mixed") or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


@contextmanager
def fast_inference(network: N, precision: str, rows: int) -> Iterator[N]:
    """The network to call for a forward pass of `rows` rows without gradients, in a context for it.

    With "auto", a network of more than LARGE weights multiplies in bfloat16 where that is faster. From its second batch
    of MANY rows on, a frozen one does so with a packed copy of its weights, at the same bits. The copy takes two bytes
    a weight, and weights that change by way of `.data` are not noticed. "int8" rounds weights and inputs of linear
    layers to 8 bits on an x86 processor. With "float32", or where gradients are asked for, nothing is changed.

    Measured for CLIP ViT-B/32, random weights: bfloat16 is twice as fast as float32 and its packed copy 1.08 times as
    fast as that. On one thread "int8" is 1.2 (pictures) to 1.3 times (texts) as fast as the packed copy; on two,
    pictures gain nothing. The least cosines to the float32 embeddings are 0.99999 for pictures and 0.99995 for texts,
    with "int8" 0.9999 and 0.9993.
    """
    if precision == "float32" or torch.is_grad_enabled():
        yield network
        return
    weights = [part.weight for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not weights:
        yield network
    elif precision == "int8" and weights[0].device.type == "cpu" and can_pack():
        yield _packed(network, "int8")
    elif sum(weight.numel() for weight in weights) <= LARGE or not has_bf16(weights[0].device):
        yield network
    else:
        frozen = not any(weight.requires_grad for weight in weights)
        packs = rows >= MANY and frozen and weights[0].device.type == "cpu"
        with autocast("auto", weights[0].device):
            yield _packed(network, "bf16") if packs else network


_copies: WeakKeyDictionary[nn.Module, dict[str, tuple[tuple[int, ...], nn.Module | None]]] = WeakKeyDictionary()


def _packed(network: N, kind: str) -> N:
    """A copy of `network` with packed linear layers, kept until the network goes or its weights change. In bfloat16 the
    first batch is given the network itself, as the packing takes as long as it saves in some two."""
    state = tuple(version for weight in network.parameters() for version in _version(weight))
    kept = _copies.setdefault(network, {})
    found, copy = kept.get(kind, (None, None))
    if found != state or copy is None:
        copy = with_packed_linears(network, kind) if kind == "int8" or found == state else None
        kept[kind] = (state, copy)
    return network if copy is None else copy  # pyright: ignore[reportReturnType]


def _version(weight: torch.Tensor) -> tuple[int, int]:
    """What changes with the values of a tensor."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device named, or if None a GPU where there is one, and else the CPU.

    Raises:
        UsageError: if the device cannot be used on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the device '{device}' cannot be used here ({first_line(error)}): try cpu") from error
    return torch.device(device)
