"""What a code transformer reads in place of some codes while it learns to predict them: random ones, or none."""

import torch
from torch import Tensor


def add_code_noise(codes: Tensor, noise: float, codebook_size: int) -> Tensor:
    """Codes (B, n) of which a share is replaced by random ones; each row's share is drawn between 0 and `noise`."""
    if not noise:
        return codes
    share = torch.rand(len(codes), 1, device=codes.device) * noise
    wrong = torch.rand(codes.shape, device=codes.device) < share
    return torch.where(wrong, torch.randint_like(codes, codebook_size), codes)


def hide_codes(codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Where a masked network is to predict codes (B, N): bool of that shape, of each row the cosine of a random angle,
    and one code at least (Chang et al. 2022, section 3.2)."""
    share = torch.rand(len(codes), 1, device=codes.device, generator=generator).mul(torch.pi / 2).cos()
    rank = torch.rand(codes.shape, device=codes.device, generator=generator).argsort(1).argsort(1)
    return rank < (share * codes.shape[1]).ceil().clamp(min=1)
