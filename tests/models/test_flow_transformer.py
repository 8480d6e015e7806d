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

SQUARES = [(row, column) for row in range(0, 6, 2) for column in range(0, 6, 2)]
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


class Plain:
    """The formulas of DiT, one picture and one head after the other, without a layer of the package."""

    def __init__(self, model: FlowTransformer) -> None:
        self.model, self.w = model, dict(model.named_parameters())

    def linear(self, name: str, v: Tensor) -> Tensor:
        bias = self.w.get(f"{name}.bias")
        return v @ self.w[f"{name}.weight"].T + (0 if bias is None else bias)

    def conv(self, name: str, v: Tensor) -> Tensor:
        return F.conv2d(v, self.w[f"{name}.weight"], self.w[f"{name}.bias"], padding=1)

    def projected(self, name: str, v: Tensor) -> Tensor:
        name = f"projections.{name}"
        return F.layer_norm(self.linear(f"{name}.0", v), (WIDTH,), self.w[f"{name}.1.weight"], self.w[f"{name}.1.bias"])

    def rms(self, name: str, v: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"]

    def vector(self, time: Tensor, text: Tensor, image: Tensor) -> Tensor:
        """What modulates the blocks."""
        angles = 1000 * time * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        vector = self.linear("time.2", F.silu(self.linear("time.0", torch.cat([angles.cos(), angles.sin()]))))
        return F.silu(vector + self.projected("text_embedding", text) + self.projected("image_embedding", image))

    def source(self, latent: Tensor, shown: Tensor) -> Tensor:
        """The source as it is added to the tokens: hidden parts are 0, and a channel says where."""
        x = (F.normalize(latent, dim=0) - self.model.mean[:, None, None]) / self.model.deviation[:, None, None]
        return torch.cat([x * shown, shown[None].float()])

    def block(self, number: int, h: Tensor, vector: Tensor) -> Tensor:
        name = f"transformer.blocks.{number}"
        shift, scale, gate, shift2, scale2, gate2 = self.linear(f"{name}.modulation", vector).split(WIDTH)
        qkv = self.linear(f"{name}.attention.qkv", self.rms(f"{name}.attention_norm", h) * (1 + scale) + shift)
        heads = []
        for q, k, v in zip(*(part.chunk(HEADS, 1) for part in qkv.chunk(3, 1)), strict=True):
            heads.append((turned(q) @ turned(k).T / math.sqrt(WIDTH / HEADS)).softmax(-1) @ v)
        h = h + gate * self.linear(f"{name}.attention.out", torch.cat(heads, 1))
        normed = self.rms(f"{name}.mlp_norm", h) * (1 + scale2) + shift2
        up, value = self.linear(f"{name}.mlp.up", normed).chunk(2, 1)
        return h + gate2 * self.linear(f"{name}.mlp.down", F.silu(up) * value)

    def velocity(self, x: Tensor, time: Tensor, given: Condition) -> Tensor:
        """The velocity (d, h, w) of one picture."""
        vector = self.vector(time[0], given.text_embedding[0], given.image_embedding[0])
        text = self.projected("text_features", given.text_features[0])
        text = (
            torch.where(given.text_mask[0][:, None], text, self.w["nulls.text_features"]) + self.w["prefix_positions"]
        )
        fine = self.conv("stem.2", F.silu(self.conv("stem.0", x)))[0]
        source = self.source(given.source_latent[0], given.source_mask[0])
        tokens = torch.stack(
            [
                self.linear("tokens", fine[:, r : r + 2, c : c + 2].flatten())
                + self.linear("source", source[:, r : r + 2, c : c + 2].flatten())
                for r, c in SQUARES
            ]
        )
        h = torch.cat([text, tokens + self.w["positions"][0].flatten(1).T])
        for number in range(2):
            h = self.block(number, h, vector)
        shift, scale, share = self.linear("final", vector).split([WIDTH, WIDTH, 8])
        h = self.linear("patches", self.rms("final_norm", h[T:]) * (1 + scale) + shift)
        coarse = torch.zeros(8, SIDE, SIDE)
        for (r, c), patch in zip(SQUARES, h, strict=True):
            coarse[:, r : r + 2, c : c + 2] = patch.view(8, 2, 2)
        head = F.silu(coarse + fine * (1 + share[:, None, None]))[None]
        t = float(time[0])
        slope = (2 * t - 1) / ((1 - t) ** 2 + t**2)
        return self.conv("head.3", F.silu(self.conv("head.1", head)))[0] + slope * x[0]


def turned(v: Tensor) -> Tensor:
    """Queries or keys (T + N, head width) with rotary positions: half of them by the row, half by the column."""
    v, quarter = v.clone(), v.shape[1] // 4
    rates = 10_000 ** (-torch.arange(quarter) / quarter)
    for token, (row, column) in enumerate(SQUARES, T):
        for number, angle in enumerate([*((row // 2 + 1) * rates), *((column // 2 + 1) * rates)]):
            a, b = v[token, 2 * number].clone(), v[token, 2 * number + 1].clone()
            v[token, 2 * number] = a * math.cos(angle) - b * math.sin(angle)
            v[token, 2 * number + 1] = a * math.sin(angle) + b * math.cos(angle)
    return v


@torch.no_grad()
def test_the_velocity_is_that_of_a_plain_computation() -> None:
    model, (x, time), given = network(), noisy(), whole_condition()
    rows = [slice(row, row + 1) for row in range(B)]
    plain = torch.stack([Plain(model).velocity(x[row], time[row], given.rows(row)) for row in rows])
    assert torch.allclose(model(x, time, given), plain, rtol=1e-4, atol=1e-4)


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
