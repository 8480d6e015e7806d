"""Linear layers whose weights are packed come near the plain ones, and a row is the same whatever is beside it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from codebrush.models.layers.packed_linear import (
    LEAST,
    PackedLinear,
    can_order,
    can_pack,
    with_packed_linears,
    with_plain_linears,
)
from codebrush.models.precision import has_bf16

pytestmark = pytest.mark.skipif(not (can_pack() and can_order()), reason="this build of PyTorch has no such products")
BOUNDS = {"float32": 5e-7, "float16": 5e-4, "int8": 2e-2}  # of the size of the result


def layer(width: int = 256, out: int = 320, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_near_the_plain_layer(kind: str, bias: bool) -> None:
    plain = layer(bias=bias)
    x = torch.randn(3, 5, 256)
    found, wanted = PackedLinear(plain, kind)(x), plain(x)
    assert (found.shape, found.dtype) == (wanted.shape, torch.float32)
    assert (found - wanted).norm() < BOUNDS[kind] * wanted.norm()
    assert kind == "float32" or (found - wanted).norm() > 0


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
def test_a_row_has_the_same_bits_whatever_is_beside_it(kind: str, rows: int) -> None:
    packed, x = PackedLinear(layer(), kind), torch.randn(rows, 256) * torch.logspace(-3, 3, rows)[:, None]
    together = packed(x)
    assert all(torch.equal(packed(x[row : row + 1])[0], together[row]) for row in range(rows))


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize(("width", "out"), [(32, 96), (704, 256), (256, 2048)])
def test_in_float32_threads_change_no_bit(rows: int, width: int, out: int) -> None:
    packed, x, before = PackedLinear(layer(width, out), "float32"), torch.randn(rows, width), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(packed(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", BOUNDS)
def test_zeros_tiny_and_large_numbers_stay_finite(kind: str) -> None:
    plain = layer(bias=False)
    plain.weight[0], plain.weight[1] = 0, 1e5  # a row of zeros, and one that float16 cannot hold
    packed, x = PackedLinear(plain, kind), torch.randn(4, 256)
    x[0], x[1] = 0, x[1] * 1e-30
    found = packed(x)
    assert found.isfinite().all()
    assert not found[0].any()
    assert not found[:, 0].any()


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_network_keeps_its_own_layers_and_shares_the_rest(kind: str) -> None:
    small = nn.Linear(8, 8)
    assert small.weight.numel() < LEAST
    network = nn.Sequential(nn.LayerNorm(256), layer(), nn.Sequential(layer(320, 256)), nn.Linear(256, 8), small).eval()
    packed = with_packed_linears(network, kind)
    last = "PackedLinear" if kind == "float32" else "Linear"
    parts = (packed[1], next(packed[2].children()), packed[4])
    assert [type(part).__name__ for part in parts] == ["PackedLinear", "PackedLinear", last]
    assert packed[0].weight is network[0].weight
    assert kind == "float32" or packed[4].weight is network[4].weight
    assert type(network[1]) is nn.Linear
    x = torch.randn(2, 256)
    assert (packed(x) - network(x)).norm() < 2 * BOUNDS[kind] * network(x).norm()


@pytest.mark.parametrize("bias", [True, False])
def test_float32_weights_come_back_bit_for_bit(bias: bool) -> None:
    network = nn.Sequential(nn.LayerNorm(256), layer(bias=bias), nn.Sequential(layer(320, 32))).eval()
    packed = with_packed_linears(network, "float32")
    again = with_plain_linears(packed)
    assert not any(isinstance(part, PackedLinear) for part in again.modules())
    assert sum(isinstance(part, PackedLinear) for part in packed.modules()) == 2
    found, wanted = again.state_dict(), network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert again[0].weight is network[0].weight
    x = torch.randn(3, 256)
    assert torch.equal(again(x), network(x))
    state = torch.get_rng_state()
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(copied(x), packed(x))
    assert torch.equal(with_plain_linears(packed)(x), network(x))
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn on the way


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="bfloat16 is not faster on this processor")
@pytest.mark.parametrize("bias", [True, False])
def test_in_bfloat16_it_is_what_autocast_computes(bias: bool) -> None:
    plain, x = layer(bias=bias), torch.randn(2, 40, 256)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = plain(x)
    found = PackedLinear(plain, "bf16")(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
