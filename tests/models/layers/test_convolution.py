import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.layers.convolution import (
    Downsample,
    GroupNormSiLU,
    ResBlock,
    SpatialAttention,
    Upsample,
    fast_layout,
    norm_groups,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain(x: Tensor, norm: GroupNormSiLU) -> Tensor:
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


def random_norm(channels: int, groups: int, dtype: torch.dtype) -> GroupNormSiLU:
    norm = GroupNormSiLU(channels, groups).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize(
    ("channels", "groups", "expected"), [(128, 32, 32), (48, 32, 24), (16, 32, 16), (7, 4, 1), (32, 8, 8)]
)
def test_group_counts_divide_the_channels(channels: int, groups: int, expected: int) -> None:
    assert norm_groups(channels, groups) == expected


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 2), (6, 6)])
@pytest.mark.parametrize("size", [(5, 3), (1, 4)])
def test_own_backward_equals_the_plain_modules(channels: int, groups: int, size: tuple[int, int]) -> None:
    norm = random_norm(channels, groups, torch.float64)
    x = (3 + 2 * torch.randn(4, channels, *size)).double().requires_grad_()
    last = x.contiguous(memory_format=torch.channels_last)
    made, expected = norm(last), plain(x, norm)
    assert "GroupNormSiLU" in type(made.grad_fn).__name__, "the fast path was not taken"
    torch.testing.assert_close(made, expected)
    upstream = torch.randn_like(made)
    wanted = (x, norm.weight, norm.bias)
    for ours, theirs in zip(
        torch.autograd.grad(made, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_own_backward_passes_gradcheck_and_gradgradcheck() -> None:
    norm = random_norm(4, 2, torch.float64)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        last = x.contiguous(memory_format=torch.channels_last)
        return torch.func.functional_call(norm, parameters, (last,))

    inputs = (
        torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True),
        norm.weight.detach().clone().requires_grad_(),
        norm.bias.detach().clone().requires_grad_(),
    )
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_own_backward_under_autocast_stays_near_float32(offset: float) -> None:
    norm = random_norm(32, 8, torch.float32)
    x = fast_layout(offset + torch.randn(4, 32, 16, 16)).requires_grad_()
    upstream = torch.randn_like(x)
    wanted = (x, norm.weight, norm.bias)
    exact = torch.autograd.grad(plain(x, norm), wanted, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        made = norm(x.bfloat16())
    assert made.dtype == torch.bfloat16
    for ours, theirs in zip(torch.autograd.grad(made, wanted, upstream.bfloat16()), exact, strict=True):
        assert ours.dtype == torch.float32
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 0.03


def test_a_norm_in_bfloat16_keeps_its_statistics_in_float32() -> None:
    norm = random_norm(32, 8, torch.bfloat16)
    x = fast_layout((4 + torch.randn(2, 32, 16, 16)).bfloat16()).requires_grad_()
    (made,) = torch.autograd.grad(norm(x).float().sum(), x)
    wide = random_norm(32, 8, torch.float32)
    wide.load_state_dict({key: value.float() for key, value in norm.state_dict().items()})
    y = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(plain(y, wide).sum(), y)
    assert (made.float() - expected).norm() / expected.norm() < 0.02


def test_without_gradients_the_plain_modules_run() -> None:
    norm = random_norm(8, 4, torch.float32)
    x = fast_layout(torch.randn(2, 8, 4, 4))
    with torch.no_grad():
        assert torch.equal(norm(x), plain(x, norm))
        assert not norm(x).requires_grad


def test_downsample_reaches_beyond_the_right_and_the_bottom_only() -> None:
    layer = Downsample(2)
    x = torch.randn(1, 2, 6, 4)
    made = layer(x)
    assert made.shape == (1, 2, 3, 2)
    padded = torch.zeros(1, 2, 7, 5)
    padded[:, :, :6, :4] = x
    for row, column in ((0, 0), (2, 1)):
        window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        expected = (window * layer.conv.weight).sum((1, 2, 3)) + layer.conv.bias
        torch.testing.assert_close(made[0, :, row, column], expected)


def test_upsample_repeats_each_pixel_before_its_convolution() -> None:
    layer = Upsample(3)
    x = torch.randn(2, 3, 4, 5)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x), layer.conv(repeated))


@pytest.mark.parametrize("width", [8, 12])
def test_a_block_whose_last_convolution_is_zero_is_its_shortcut(width: int) -> None:
    block = ResBlock(8, width, groups=4)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.randn(2, 8, 4, 4)
    made = block(x)
    assert made.shape == (2, width, 4, 4)
    torch.testing.assert_close(made, block.shortcut(x))


def test_attention_equals_torch_attention_over_the_positions() -> None:
    layer = SpatialAttention(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    h = layer.norm(x)
    q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (layer.q, layer.k, layer.v))  # (B, HW, C)
    mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    expected = x + layer.proj_out(mixed.transpose(1, 2).unflatten(2, (3, 5)))
    torch.testing.assert_close(layer(x), expected)
