"""Convolutional layers of the VQGAN, on feature maps (B, C, H, W).

`ResBlock` and `SpatialAttention` keep the size, `Downsample` halves it, `Upsample` doubles it. The structure is that of
taming-transformers (Esser et al. 2021, table 7), so that its published weights fit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-6


def norm_groups(channels: int, groups: int = 32) -> int:
    """The largest number of groups, at most `groups`, that divides `channels`."""
    return next(count for count in range(min(groups, channels), 0, -1) if channels % count == 0)


def group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm with the epsilon of the published models."""
    return nn.GroupNorm(norm_groups(channels, groups), channels, eps=NORM_EPSILON)


def fast_layout(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) in the memory layout that is fastest on its device; the layers here preserve it.

    On a CPU that is channels last: oneDNN then runs convolutions of few channels at up to twice the speed.
    """
    return x.contiguous(memory_format=torch.channels_last if x.is_cpu else torch.contiguous_format)


class GroupNormSiLU(nn.GroupNorm):
    """GroupNorm (Wu and He 2018), then SiLU: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, groups: int = 32):
        super().__init__(norm_groups(channels, groups), channels, eps=NORM_EPSILON)

    def forward(self, input: Tensor) -> Tensor:
        # PyTorch's own GroupNorm takes several times as long backward with channels last as without.
        last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
        if input.is_cpu and last and torch.is_grad_enabled():
            return _GroupNormSiLU.apply(input, self.weight, self.bias, self.num_groups, self.eps)  # pyright: ignore[reportReturnType]
        return F.silu(super().forward(input))


class _GroupNormSiLU(torch.autograd.Function):
    """GroupNorm and SiLU that keep only their input for the backward pass, which is made for channels last.

    Every operation is a product with, or a sum over, rows of channels (B, HW, C). Statistics and sums are in float32 or
    more precise.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
        batch, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)  # the statistics take the weights' type
        y, mean, rstd = torch.native_group_norm(
            x, weight.to(wide), bias.to(wide), batch, channels, height * width, groups, epsilon
        )
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.epsilon = groups, epsilon
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a gradient of this gradient autograd needs plain operations
            y = F.silu(F.group_norm(x, ctx.groups, weight, bias, ctx.epsilon))
            return *torch.autograd.grad(y, (x, weight, bias), gradients[0], create_graph=True), None, None
        per_group = x.shape[1] // ctx.groups
        mean, rstd = (t.repeat_interleave(per_group, dim=1).unsqueeze(1) for t in (mean, rstd))  # (B, 1, C)
        rows, gradient = _rows(x), _rows(gradients[0])  # (B, HW, C)
        unit = torch.addcmul((-mean * rstd).to(x.dtype), rows, rstd.to(x.dtype))  # the input at mean 0 and variance 1
        g = torch.addcmul(bias.to(x.dtype), unit, weight.to(x.dtype))
        g = torch.ops.aten.silu_backward.grad_input(gradient, g, grad_input=g)  # gradient of the norm's output
        along_bias = g.sum(1, keepdim=True).to(mean.dtype)  # (B, 1, C)
        along_weight = (g * unit).sum(1, keepdim=True).to(mean.dtype)
        # The norm removes the parts of the group's gradient along a constant and along the normalised input.
        count = rows.shape[1] * per_group
        constant, linear = (
            (-rstd / count * (part * weight).unflatten(2, (ctx.groups, -1)).sum(3).repeat_interleave(per_group, dim=2))
            for part in (along_bias, along_weight)
        )
        dx = torch.addcmul(constant.to(x.dtype), unit, linear.to(x.dtype)).addcmul_(g, (rstd * weight).to(x.dtype))
        dx = dx.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W), channels last
        return dx, along_weight.sum((0, 1)).to(weight.dtype), along_bias.sum((0, 1)).to(bias.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)  # (B, C, H, W) -> (B, HW, C); a view if channels come last


def zero_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose output is zero until it has been trained."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, added to the input: (B, channels_in, H, W) -> (B, channels_out, H, W).

    Where the number of channels changes, the input passes through a 1 x 1 convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, groups: int = 32):
        super().__init__()
        self.norm1 = GroupNormSiLU(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = GroupNormSiLU(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))  # (B, channels_out, H, W)
        h = self.conv2(self.norm2(h))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Self-attention of one head over all positions, added to the input: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, groups: int = 32):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)  # (B, C, H, W)
        q, k, v = (project(h).flatten(2) for project in (self.q, self.k, self.v))  # each (B, C, HW)
        # Two batched products: with one wide head the fused kernels are slower, forward and backward.
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=-1)  # (B, HW, HW)
        h = v @ weights.transpose(1, 2)  # (B, C, HW)
        return x + self.proj_out(h.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """A strided convolution: (B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # padded on the right and bottom alone, as the published models are


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a convolution: (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
