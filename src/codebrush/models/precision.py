"""A device and a wish in, the number format of products out: bfloat16 where it is faster than float32."""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Where products run in bfloat16: with "bf16" or "bf16-mixed" always, with "auto" where that is faster."""
    wanted = precision in ("bf16", "bf16-mixed") or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
