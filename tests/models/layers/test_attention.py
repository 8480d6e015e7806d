import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codebrush.models.layers.attention import (
    SHORT,
    Attention,
    KVCache,
    attend,
    rotary_angles,
    rotary_angles_2d,
    rotary_factors,
    rotate,
)

WIDTH, HEADS = 16, 2


def naive_attention(attention: Attention, x: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """One query of one head at a time, as the paper states it."""
    q, k, v = attention.qkv(x).chunk(3, dim=-1)  # each (B, N, D)
    size = x.shape[2] // attention.heads
    y = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(x.shape[1]):
                open_to = [j for j in range(x.shape[1]) if mask is None or bool(mask[row, j]) or (causal and j == i)]
                seen = [j for j in open_to if j <= i or not causal]
                scores = torch.stack([q[row, i, part] @ k[row, j, part] for j in seen]) / math.sqrt(size)
                y[row, i, part] = sum(w * v[row, j, part] for w, j in zip(scores.softmax(0), seen, strict=True))
    return attention.out(y)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """One vector (head_width,) rotated by angles (1, head_width / 2)."""
    return rotate(x[None, None, None], rotary_factors(angles))[0, 0, 0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_naive_loop(causal: bool, masked: bool, training: bool) -> None:
    attention, x = Attention(WIDTH, HEADS), torch.randn(3, 5, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]).bool() if masked else None
    with torch.set_grad_enabled(training):
        found = attention(x, causal=causal, mask=mask)
    torch.testing.assert_close(found, naive_attention(attention, x, causal, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_plain_products_give_the_values_and_gradients_of_the_fused_kernel(causal: bool, masked: bool) -> None:
    inputs = [torch.randn(2, HEADS, 7, 8, requires_grad=True) for _ in range(3)]
    allowed = (torch.rand(2, 1, 7, 7) < 0.6) | torch.eye(7, dtype=torch.bool) if masked else None
    weights = torch.randn(2, HEADS, 7, 8)
    both = allowed
    if allowed is not None and causal:
        both = allowed & torch.ones(7, 7).tril().bool()
    found = attend(*inputs, allowed=both, causal=causal and not masked)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=both, is_causal=causal and not masked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_long_sequences_are_causal_in_training_too() -> None:
    attention, x = Attention(WIDTH, HEADS), torch.randn(1, SHORT + 2, WIDTH)
    changed = x.clone()
    changed[:, -1] += 1
    a, b = attention(x, causal=True), attention(changed, causal=True)
    torch.testing.assert_close(a[:, :-1], b[:, :-1])
    assert not torch.allclose(a[:, -1], b[:, -1])


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_a_single_allowed_token_stays_finite_and_harms_no_other(causal: bool) -> None:
    attention, x = Attention(WIDTH, HEADS), torch.randn(2, 4, WIDTH)
    mask = torch.tensor([[True] * 4, [False] * 4])
    training = attention(x, causal=causal, mask=mask)
    with torch.no_grad():
        assert attention(x, causal=causal, mask=mask).isfinite().all()
    assert training.isfinite().all()
    torch.testing.assert_close(training[:1], attention(x[:1], causal=causal))
    training.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_a_width_that_does_not_divide_into_its_heads_raises() -> None:
    with pytest.raises(ValueError, match="width 10 does not divide into 4 heads"):
        Attention(10, 4)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(0, 60), n=st.integers(0, 60), shift=st.integers(0, 200), seed=st.integers(0, 99))
def test_rotated_products_depend_on_the_distance_alone(m: int, n: int, shift: int, seed: int) -> None:
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))
    angles = rotary_angles(torch.tensor([m, n, m + shift, n + shift]), 16)
    here = rotated(q, angles[:1]) @ rotated(k, angles[1:2])
    there = rotated(q, angles[2:3]) @ rotated(k, angles[3:])
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


@settings(deadline=None, max_examples=30)
@given(places=st.tuples(*[st.integers(0, 30)] * 4), down=st.integers(0, 30), across=st.integers(0, 30))
def test_rotated_products_on_a_grid_depend_on_both_distances_alone(
    places: tuple[int, int, int, int], down: int, across: int
) -> None:
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    rows, columns = torch.tensor(places[:2]), torch.tensor(places[2:])
    near = rotary_angles_2d(rows, columns, 16)
    far = rotary_angles_2d(rows + down, columns + across, 16)
    here = rotated(q, near[:1]) @ rotated(k, near[1:])
    there = rotated(q, far[:1]) @ rotated(k, far[1:])
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


def test_rotation_is_the_complex_product_of_neighbouring_pairs() -> None:
    x = torch.randn(2, HEADS, 5, 8)
    positions = torch.tensor([0, 1, 2, 7, 100])
    speeds = torch.tensor([10_000.0 ** (-2 * i / 8) for i in range(4)])  # theta_i of RoFormer, equation 15
    factors = torch.polar(torch.ones(5, 4), positions[:, None] * speeds)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * factors).flatten(-2)
    found = rotate(x, rotary_factors(rotary_angles(positions, 8)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), rotary_factors(rotary_angles(positions, 8))).dtype == torch.bfloat16


def test_the_first_half_of_a_head_is_rotated_by_the_row_and_the_rest_by_the_column() -> None:
    rows, columns = torch.tensor([3, 3, 5]), torch.tensor([1, 4, 1])
    angles = rotary_angles_2d(rows, columns, 16)
    assert angles.shape == (3, 8)
    assert torch.equal(angles[0, :4], angles[1, :4])
    assert torch.equal(angles[0, 4:], angles[2, 4:])
    assert torch.equal(angles[0, :4], rotary_angles(torch.tensor([3]), 8)[0])
    assert (angles[0] != angles[1])[4:].all()
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        rotary_angles_2d(rows, columns, 6)


@pytest.mark.parametrize("reserved", [0, 3, 9])
def test_a_cache_returns_all_that_a_layer_has_seen_however_it_grows(reserved: int) -> None:
    keys, values = torch.randn(2, 2, HEADS, 9, 4)  # each (B, heads, N, d)
    cache = KVCache(2)
    cache.reserve(reserved)
    end = 0
    for count in (2, 1, 4, 2):
        start, end = end, end + count
        for layer in range(2):
            k, v = cache.append(layer, keys[:, :, start:end] + layer, values[:, :, start:end] + layer)
            assert torch.equal(k, keys[:, :, :end] + layer)
            assert torch.equal(v, values[:, :, :end] + layer)
        cache.advance(count)
        assert cache.length == end


def test_a_reserved_cache_is_filled_in_place() -> None:
    cache = KVCache(1)
    cache.reserve(3)
    places = set()
    for _ in range(3):
        keys, _ = cache.append(0, torch.randn(1, HEADS, 1, 4), torch.randn(1, HEADS, 1, 4))
        places.add(keys.data_ptr())
        cache.advance(1)
    assert len(places) == 1
