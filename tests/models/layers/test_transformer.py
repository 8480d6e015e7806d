import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.attention import KVCache, rotary_angles, rotary_factors
from codebrush.models.layers.transformer import (
    MLP,
    SAME_IN_TOWERS,
    Block,
    Transformer,
    TransformerConfig,
    blocks_of,
    make_norm,
)


def trunk(**changes: Any) -> Transformer:
    """A small transformer with weights so large that every part changes the output."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, **changes}
    model = Transformer(TransformerConfig(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def through_cache(model: Transformer, x: Tensor, chunks: list[int], rotary: Tensor | None = None) -> Tensor:
    cache, outputs, end = KVCache(2), [], 0
    for count in chunks:
        start, end = end, end + count
        now = None if rotary is None else rotary[:, start:end]
        outputs.append(model(x[:, start:end], rotary=now, cache=cache))
    assert cache.length == x.shape[1]
    return torch.cat(outputs, dim=1)


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


@pytest.mark.parametrize(("name", "formula"), [("gelu", gelu), ("quick_gelu", quick_gelu)])
def test_an_mlp_is_two_maps_with_its_activation_between(name: Any, formula: Any) -> None:
    mlp, x = MLP(TransformerConfig(8, 1, 1, activation=name)), torch.randn(3, 5, 8)
    torch.testing.assert_close(mlp(x), mlp.down(formula(mlp.up(x))), atol=1e-6, rtol=1e-5)


def test_swiglu_gates_one_map_by_the_silu_of_another() -> None:
    mlp, x = MLP(TransformerConfig(8, 1, 1, activation="swiglu", bias=False)), torch.randn(3, 5, 8)
    gate, value = mlp.up.weight.chunk(2)
    gated = x @ gate.T / (1 + torch.exp(-(x @ gate.T))) * (x @ value.T)
    torch.testing.assert_close(mlp(x), gated @ mlp.down.weight.T, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ({}, 4 * 48),
        ({"activation": "quick_gelu"}, 4 * 48),
        ({"activation": "swiglu"}, 128),
        ({"activation": "swiglu", "hidden": 50}, 50),
        ({"hidden": 7}, 7),
    ],
)
def test_the_width_inside_an_mlp(values: dict[str, Any], width: int) -> None:
    config = TransformerConfig(48, 1, 2, **values)
    assert config.mlp_width == MLP(config).down.in_features == width


SIZES = {"width": 16, "layers": 3, "heads": 4, "hidden": 40, "norm_epsilon": 1e-6, "dropout": 0.1, "layer_scale": True}


@pytest.mark.parametrize(
    "tower",
    [
        TextTransformerConfig(vocab_size=9, context_length=5, embed_dim=8, activation="quick_gelu", **SIZES),
        VisionTransformerConfig(image_size=16, patch_size=8, embed_dim=8, activation="quick_gelu", **SIZES),
    ],
    ids=["text", "vision"],
)
def test_a_tower_says_each_size_of_its_blocks(tower: Any) -> None:
    """A field that it lacked, because it has another name there, would silently be the usual one."""
    assert tower.trunk == TransformerConfig(activation="quick_gelu", **SIZES)
    said = {each.name: getattr(tower, each.name) for each in fields(TransformerConfig) if hasattr(tower, each.name)}
    assert {each.name for each in fields(TransformerConfig)} - set(said) == set(SAME_IN_TOWERS)
    for name in said:
        renamed = SimpleNamespace(**{f"{name}_" if each == name else each: value for each, value in said.items()})
        with pytest.raises(AttributeError, match=f"'{name}'"):
            blocks_of(renamed)
    assert blocks_of(SimpleNamespace(**said, norm="rms")).norm == "rms"


def test_a_block_adds_attention_and_mlp_each_after_a_norm() -> None:
    block, x = Block(TransformerConfig(16, 1, 2)), torch.randn(2, 4, 16)
    middle = x + block.attention(F.layer_norm(x, (16,)), causal=True)
    expected = middle + block.mlp(F.layer_norm(middle, (16,)))
    torch.testing.assert_close(block(x, causal=True), expected)


def test_norms_are_of_the_kind_and_epsilon_asked_for() -> None:
    x = 1e-3 * torch.randn(2, 16) + 5e-3
    layer = make_norm(TransformerConfig(16, 1, 1, norm_epsilon=1e-6))
    rms = make_norm(TransformerConfig(16, 1, 1, norm="rms", norm_epsilon=1e-4))
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt()
    torch.testing.assert_close(rms(x), expected, atol=1e-5, rtol=1e-4)


def test_features_are_the_outputs_of_the_blocks_in_their_order() -> None:
    model, x = trunk(), torch.randn(2, 5, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    outputs = model.features(x, mask=mask)
    assert torch.equal(outputs[0], model.blocks[0](x, mask=mask))
    assert torch.equal(outputs[-1], model(x, mask=mask))
    assert len(outputs) == 2


def test_residual_branches_start_smaller_in_deeper_transformers() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(64, 8, 2))
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    assert len(spread) == 8 * 4
    for name, value in spread.items():
        leads_back = name.endswith(("attention.out.weight", "mlp.down.weight"))
        assert value == pytest.approx(0.02 / 4 if leads_back else 0.02, rel=0.1)
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Linear)]
    assert biases
    assert all(not bias.any() for bias in biases)
    without = Transformer(TransformerConfig(16, 1, 2, bias=False))
    assert all(m.bias is None for m in without.modules() if isinstance(m, nn.Linear))


def test_dropout_acts_in_training_alone() -> None:
    model, x = trunk(dropout=0.5), torch.randn(1, 4, 16)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@settings(deadline=None, max_examples=25)
@given(
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    batch=st.integers(1, 3),
    rotary=st.booleans(),
    modern=st.booleans(),
)
def test_cached_chunks_of_any_size_equal_one_causal_pass(
    chunks: list[int], batch: int, rotary: bool, modern: bool
) -> None:
    model = trunk(norm="rms", activation="swiglu", bias=False) if modern else trunk()
    x = torch.randn(batch, sum(chunks), 16, generator=torch.Generator().manual_seed(sum(chunks)))
    factors = rotary_factors(rotary_angles(torch.arange(sum(chunks)), 8)) if rotary else None
    with torch.no_grad():
        whole = model(x, causal=True, rotary=factors)
        cached = through_cache(model, x, chunks, factors)
        alone = torch.cat([through_cache(model, row[None], chunks, factors) for row in x])
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, cached, atol=1e-5, rtol=1e-5)


def test_rotary_positions_make_order_count() -> None:
    model, x = trunk(), torch.randn(1, 4, 16)
    swapped = x[:, [1, 0, 2, 3]]
    torch.testing.assert_close(model(x)[:, 3], model(swapped)[:, 3], atol=1e-5, rtol=1e-5)
    rotary = rotary_factors(rotary_angles(torch.arange(4), 8))
    assert not torch.allclose(model(x, rotary=rotary)[:, 3], model(swapped, rotary=rotary)[:, 3], atol=1e-3)
