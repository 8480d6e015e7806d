"""Which device to use, and whether it multiplies faster in bfloat16."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from codebrush.errors import UsageError

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


def fast_inference(network: nn.Module, precision: str) -> AbstractContextManager[object]:
    """A context for a forward pass of `network` without gradients: with "auto", one of more than LARGE weights computes
    its matrix products in bfloat16 where that is faster; with "float32", or where gradients are asked for, nothing is
    changed.

    Measured for CLIP ViT-B/32, random weights: twice as fast, and the cosine to the float32 embedding is 0.99999 for
    pictures and 0.99996 for texts.
    """
    if precision == "float32" or torch.is_grad_enabled():
        return nullcontext()
    products = (part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    weights = [part.weight for part in products]
    if sum(weight.numel() for weight in weights) <= LARGE:
        return nullcontext()
    return autocast("auto", weights[0].device) if has_bf16(weights[0].device) else nullcontext()


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
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the device '{device}' cannot be used here ({reason}): try cpu") from error
    return torch.device(device)
