"""A device that is asked for in, one that is here out; and the number format in which its products are fastest."""

import torch

from codebrush.errors import UsageError


def has_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Where products run in bfloat16: with "bf16" or "bf16-mixed" always, with "auto" where that is faster."""
    wanted = precision in ("bf16", "bf16-mixed") or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def usable_device(device: str | torch.device | None) -> torch.device:
    """`device`, or where None a GPU where there is one. A UsageError for one that is not here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the device '{device}' cannot be used here ({reason}): try cpu") from error
    return torch.device(device)
