"""The flow transformer's velocity against a plain computation, and what its conditions do."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import PackError
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig

B, D, SIDE, WIDTH, HEADS, T, F_WIDTH, E = 3, 4, 6, 32, 2, 5, 7, 6
CONFIG = FlowTransformerConfig(
    latent_channels=D, grid=(SIDE, SIDE), width=WIDTH, layers=2, heads=HEADS, stem=8,
    text_features=F_WIDTH, text_length=T, text_embedding=E, image_embedding=E, source=True,
)  # fmt: skip


def network(**changes) -> FlowTransformer:
    """A network all of whose weights differ from 0, so that everything in it matters."""
    torch.manual_seed(0)
    model = FlowTransformer(replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        model.mean.copy_(torch.linspace(-0.1, 0.2, D))
        model.deviation.copy_(torch.linspace(0.3, 0.6, D))
    return model


def whole_condition(rows: int = B) -> Condition:
    torch.manual_seed(1)
    return Condition(
        text_features=torch.randn(rows, T, F_WIDTH),
        text_mask=torch.arange(T).expand(rows, T) < torch.tensor([[5], [2], [3]])[:rows],
        text_embedding=torch.randn(rows, E),
        image_embedding=torch.randn(rows, E),
        source_latent=torch.randn(rows, D, SIDE, SIDE),
        source_mask=torch.rand(rows, SIDE, SIDE) < 0.5,
    )


def noisy(rows: int = B) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(rows, D, SIDE, SIDE), torch.tensor([0.9, 0.5, 0.05])[:rows]


def plain_velocity(m: FlowTransformer, x: Tensor, time: Tensor, given: Condition) -> Tensor:
    """The formulas of DiT, one picture and one head after the other, without a layer of the package."""
    w, half, velocities = dict(m.named_parameters()), 128, []

    def linear(name: str, v: Tensor) -> Tensor:
        bias = w.get(f"{name}.bias")
        return v @ w[f"{name}.weight"].T + (0 if bias is None else bias)

    def conv(name: str, v: Tensor) -> Tensor:
        return F.conv2d(v, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def projected(name: str, v: Tensor) -> Tensor:
        return F.layer_norm(linear(f"{name}.0", v), (WIDTH,), w[f"{name}.1.weight"], w[f"{name}.1.bias"])

    def rms(name: str, v: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    def turned(v: Tensor) -> Tensor:  # (T + N, head width): the first half by the row, the second by the column
        quarter = v.shape[1] // 4
        rates = 10_000 ** (-torch.arange(quarter) / quarter)
        for token in range(T, len(v)):
            row, column = divmod(token - T, SIDE // 2)
            for number, rate in enumerate([*((row + 1) * rates), *((column + 1) * rates)]):
                a, b = v[token, 2 * number].clone(), v[token, 2 * number + 1].clone()
                v[token, 2 * number] = a * math.cos(rate) - b * math.sin(rate)
                v[token, 2 * number + 1] = a * math.sin(rate) + b * math.cos(rate)
        return v

    for row in range(len(x)):
        angles = 1000 * time[row] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        vector = linear("time.2", F.silu(linear("time.0", torch.cat([angles.cos(), angles.sin()]))))
        vector = vector + projected("projections.text_embedding", given.text_embedding[row])
        vector = F.silu(vector + projected("projections.image_embedding", given.image_embedding[row]))
        text = projected("projections.text_features", given.text_features[row])
        text = torch.where(given.text_mask[row][:, None], text, w["nulls.text_features"]) + w["prefix_positions"]
        fine = conv("stem.2", F.silu(conv("stem.0", x[row : row + 1])))
        source = F.normalize(given.source_latent[row], dim=0) - m.mean[:, None, None]
        source = source / m.deviation[:, None, None] * given.source_mask[row]
        source = torch.cat([source, given.source_mask[row][None].float()])
        squares = [(r, c) for r in range(0, SIDE, 2) for c in range(0, SIDE, 2)]
        tokens = [
            linear("tokens", fine[0, :, r : r + 2, c : c + 2].flatten())
            + linear("source", source[:, r : r + 2, c : c + 2].flatten())
            for r, c in squares
        ]
        h = torch.cat([text, torch.stack(tokens) + w["positions"][0].flatten(1).T])
        for layer in range(2):
            block = f"transformer.blocks.{layer}"
            shift, scale, gate, shift2, scale2, gate2 = linear(f"{block}.modulation", vector).split(WIDTH)
            normed = rms(f"{block}.attention_norm", h) * (1 + scale) + shift
            heads = []
            for q, k, v in zip(
                *(p.chunk(HEADS, 1) for p in linear(f"{block}.attention.qkv", normed).chunk(3, 1)), strict=True
            ):
                weights = (turned(q.clone()) @ turned(k.clone()).T / math.sqrt(WIDTH / HEADS)).softmax(-1)
                heads.append(weights @ v)
            h = h + gate * linear(f"{block}.attention.out", torch.cat(heads, 1))
            up, value = linear(f"{block}.mlp.up", rms(f"{block}.mlp_norm", h) * (1 + scale2) + shift2).chunk(2, 1)
            h = h + gate2 * linear(f"{block}.mlp.down", F.silu(up) * value)
        shift, scale, share = linear("final", vector).split([WIDTH, WIDTH, 8])
        h = linear("patches", rms("final_norm", h[T:]) * (1 + scale) + shift)
        coarse = torch.zeros(1, 8, SIDE, SIDE)
        for (r, c), patch in zip(squares, h, strict=True):
            coarse[0, :, r : r + 2, c : c + 2] = patch.view(8, 2, 2)
        moved = conv("head.3", F.silu(conv("head.1", F.silu(coarse + fine * (1 + share[:, None, None])))))
        t = float(time[row])
        velocities.append(moved + (2 * t - 1) / ((1 - t) ** 2 + t**2) * x[row])
    return torch.cat(velocities)


@torch.no_grad()
def test_the_velocity_is_that_of_a_plain_computation() -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    assert torch.allclose(model(x, time, given), plain_velocity(model, x, time, given), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fresh_network_gives_the_best_linear_prediction() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 4, D, 50, 50)
    for t in (0.0, 0.2, 0.7, 1.0):
        seen = (1 - t) * x + t * noise
        found = FlowTransformer(CONFIG)(seen, torch.full((4,), t))
        slope = ((noise - x) * seen).sum() / seen.square().sum()  # by least squares
        assert torch.allclose(found, slope * seen, atol=0.05)


@torch.no_grad()
def test_rows_do_not_see_each_other() -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    together = model(x, time, given)
    for row in range(B):
        alone = model(x[row : row + 1], time[row : row + 1], given.rows(slice(row, row + 1)))
        assert torch.allclose(together[row], alone[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("number", range(4))
def test_a_condition_that_a_row_lacks_counts_as_not_given(number: int) -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    name = CONFIG.conditions[number]
    present = torch.ones(B, 4, dtype=torch.bool)
    present[1, number] = False
    found = model(x, time, replace(given, present=present))
    without = model(x, time, replace(given, **{name: None}))
    whole = model(x, time, given)
    assert torch.allclose(found[1], without[1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[0], whole[0], rtol=1e-4, atol=1e-4)
    assert float((whole[1] - without[1]).abs().max()) > 1e-2  # the condition matters


@torch.no_grad()
def test_text_beyond_the_prefix_is_cut_and_padding_is_not_read() -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    assert given.text_features is not None
    assert given.text_mask is not None
    other = torch.where(given.text_mask[..., None], given.text_features, 100.0)
    longer = replace(
        given, text_features=F.pad(other, (0, 0, 0, 3), value=9.0), text_mask=F.pad(given.text_mask, (0, 3), value=True)
    )
    assert torch.allclose(model(x, time, given), model(x, time, longer), atol=1e-5)


@torch.no_grad()
def test_hidden_parts_of_a_source_are_not_read() -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    assert given.source_latent is not None
    assert given.source_mask is not None
    other = torch.where(given.source_mask[:, None], given.source_latent, torch.randn(B, D, SIDE, SIDE))
    assert torch.allclose(model(x, time, given), model(x, time, replace(given, source_latent=other)), atol=1e-5)


def test_in_training_each_condition_is_dropped_as_often_as_asked() -> None:
    model = network(condition_dropout=0.2).train()
    keep = model._keep(Condition(), 20_000)
    share = torch.cat(list(keep.values()), dim=1).float().mean(0)
    assert torch.allclose(share, torch.full((4,), 0.8 * 0.8), atol=0.02)
    nothing = (
        torch.stack(list(keep.values())).any(0).float().mean()
    )  # all dropped at once far more often than by chance
    assert abs(float(1 - nothing) - (0.2 + 0.8 * 0.2**4)) < 0.02


@torch.no_grad()
def test_it_takes_other_grids_and_no_condition_at_all() -> None:
    model = network()
    x = torch.randn(2, D, 4, 10)
    assert model(x, torch.tensor([0.3, 0.7])).shape == x.shape
    plain = FlowTransformer(FlowTransformerConfig(D, (4, 4), 16, 1, 2))
    assert plain(x, torch.tensor([0.3, 0.7]), Condition()).shape == x.shape


def test_latents_are_brought_to_mean_0_and_variance_1_and_back() -> None:
    model, latent = network(), torch.randn(2, D, 3, 3) * 5
    unit = F.normalize(latent, dim=1)
    x = model.normalise(latent)
    assert torch.allclose(x[:, 1] * model.deviation[1] + model.mean[1], unit[:, 1], atol=1e-6)
    assert torch.allclose(model.denormalise(x), unit, atol=1e-6)
    assert torch.allclose(
        network(unit_latents=False).denormalise(network(unit_latents=False).normalise(latent)), latent, atol=1e-5
    )


def test_a_grid_without_whole_patches_is_refused() -> None:
    with pytest.raises(PackError, match="a grid of 5 x 6 has no whole squares of 2"):
        replace(CONFIG, grid=(5, 6))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "near"), [(None, 0.0), (torch.float16, 0.05)])
def test_saved_and_loaded_it_draws_the_same(tmp_path: Path, dtype: torch.dtype | None, near: float) -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    model.save_pretrained(tmp_path, dtype=dtype)
    loaded = FlowTransformer.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    before, after = model(x, time, given), loaded(x, time, given)
    assert (before - after).norm() <= near * before.norm()
