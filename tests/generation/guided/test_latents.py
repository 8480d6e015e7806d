"""What guidance optimises: exact values, exact gradients, for codebooks of every kind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.latents import CategoricalLatent, ContinuousLatent, make_latent
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from packs import micro_vqgan

KINDS: dict[str, dict[str, Any]] = {
    "unit": {},
    "euclidean": {"l2_normalized": False},
    "gumbel": {"l2_normalized": False, "quantizer": "gumbel"},
}
K, D = 128, 8


@pytest.fixture(params=KINDS)
def vqgan(request: pytest.FixtureRequest) -> VQGAN:
    """A micro VQGAN of each kind, its codes of different lengths before any normalisation."""
    torch.manual_seed(0)
    model = VQGAN(replace(vqgan_micro(), **KINDS[request.param])).eval().requires_grad_(False)
    model.quantizer.codebook.copy_(torch.randn(K, D) * torch.linspace(0.5, 2, K)[:, None])
    return model


def made(vqgan: VQGAN, **options: Any) -> ContinuousLatent | CategoricalLatent:
    return make_latent(vqgan, GuideOptions(**options))


def near(vqgan: VQGAN, latent: Tensor) -> Tensor:
    """The nearest codes (B, h, w), searched naively in float64."""
    rows = latent.detach().double().movedim(1, -1)
    if vqgan.config.l2_normalized:
        rows = F.normalize(rows, dim=-1)
    return (rows[..., None, :] - vqgan.quantizer.vectors.double()).square().sum(-1).argmin(-1)


def test_the_options_choose_the_kind() -> None:
    assert isinstance(made(micro_vqgan()), ContinuousLatent)
    assert isinstance(made(micro_vqgan(), latent="categorical"), CategoricalLatent)


def test_the_decoder_reads_the_nearest_codes(vqgan: VQGAN) -> None:
    latent, start = made(vqgan), 2 * torch.randn(2, D, 5, 7)
    decoded, codes = latent.decoder_input(latent.initial_value(start))
    assert codes.dtype == torch.int64
    assert torch.equal(codes, near(vqgan, start))
    assert torch.equal(decoded, vqgan.quantizer.look_up(codes))
    assert codes.unique().numel() > 10


def test_the_gradient_passes_straight_through(vqgan: VQGAN) -> None:
    latent = made(vqgan)
    value = latent.initial_value(torch.randn(1, D, 4, 4)).requires_grad_()
    decoded, _ = latent.decoder_input(value)
    at_decoded = decoded.detach().requires_grad_()
    weights = torch.randn(1, 3, 16, 16)
    (vqgan.decode(decoded) * weights).sum().backward()
    (vqgan.decode(at_decoded) * weights).sum().backward()
    assert value.grad is not None
    assert at_decoded.grad is not None
    assert torch.equal(value.grad, at_decoded.grad)
    assert value.grad.norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_that_gradient_agrees_with_finite_differences_at_the_codes(kind: str) -> None:
    """A straight-through gradient is that of the picture at the quantised latent, which differences can check."""
    vqgan = VQGAN(replace(vqgan_micro(), **KINDS[kind])).double().eval().requires_grad_(False)
    torch.nn.init.normal_(vqgan.quantizer.codebook)
    latent, weights = made(vqgan), torch.randn(1, 3, 16, 16, dtype=torch.float64)

    def loss(quantised: Tensor) -> Tensor:
        return (vqgan.decode(quantised) * weights).square().sum()

    value = latent.initial_value(torch.randn(1, D, 4, 4, dtype=torch.float64)).requires_grad_()
    decoded, _ = latent.decoder_input(value)
    loss(decoded).backward()
    assert value.grad is not None
    for _ in range(5):
        way = F.normalize(torch.randn_like(value), dim=(0, 1, 2, 3)).detach() * 1e-5
        slope = (loss(decoded.detach() + way) - loss(decoded.detach() - way)) / 2
        torch.testing.assert_close((value.grad * way).sum(), slope, rtol=1e-6, atol=1e-12)


def test_unquantised_the_decoder_reads_the_value_itself(vqgan: VQGAN) -> None:
    latent = made(vqgan, quantise=False)
    value = latent.initial_value(torch.randn(2, D, 3, 3))
    decoded, codes = latent.decoder_input(value)
    assert torch.equal(decoded, value)
    assert torch.equal(codes, near(vqgan, value))


def test_a_start_is_brought_to_the_codes_length_and_copied(vqgan: VQGAN) -> None:
    start = 3 * torch.randn(1, D, 4, 4)
    value = made(vqgan).initial_value(start)
    assert value.data_ptr() != start.data_ptr()
    if vqgan.config.l2_normalized:
        torch.testing.assert_close(value.norm(dim=1), torch.ones(1, 4, 4))
        torch.testing.assert_close(F.cosine_similarity(value, start), torch.ones(1, 4, 4))
    else:
        assert torch.equal(value, start)


def test_confined_vectors_lie_in_the_codebooks_range(vqgan: VQGAN) -> None:
    value = 10 * torch.randn(2, D, 6, 6)
    before = value.clone()
    made(vqgan, clamp=False).clamp_(value)
    assert torch.equal(value, before)
    made(vqgan).clamp_(value)
    low, high = vqgan.quantizer.vectors.amin(0), vqgan.quantizer.vectors.amax(0)
    for channel in range(D):
        assert torch.equal(value[:, channel], before[:, channel].clamp(low[channel], high[channel]))


def test_logits_are_larger_for_nearer_codes(vqgan: VQGAN) -> None:
    latent, start = made(vqgan, latent="categorical"), torch.randn(2, D, 3, 4)
    value = latent.initial_value(start)
    assert value.shape == (2, K, 3, 4)
    rows = F.normalize(start, dim=1) if vqgan.config.l2_normalized else start
    distance = torch.cdist(rows.movedim(1, -1).flatten(0, 2), vqgan.quantizer.vectors)  # (B h w, K)
    ordered = value.movedim(1, -1).flatten(0, 2).gather(1, distance.argsort(1))
    assert (ordered.diff(dim=1) <= 1e-4).all()
    assert torch.equal(latent.decoder_input(value)[1], near(vqgan, start))


def test_a_code_has_itself_as_the_likeliest(vqgan: VQGAN) -> None:
    codes = torch.randint(K, (2, 4, 4))
    latent = made(vqgan, latent="categorical")
    decoded, read = latent.decoder_input(latent.initial_value(vqgan.quantizer.look_up(codes)))
    assert torch.equal(read, codes)
    assert torch.equal(decoded, vqgan.quantizer.look_up(codes))


def test_the_gradient_of_logits_is_that_of_the_softmax(vqgan: VQGAN) -> None:
    latent = made(vqgan, latent="categorical", code_temperature=0.6)
    value = torch.randn(2, K, 3, 4, requires_grad=True)
    upstream = torch.randn(2, D, 3, 4)
    expected = torch.einsum("bkhw,kd->bdhw", (value / 0.6).softmax(1), vqgan.quantizer.vectors)
    torch.testing.assert_close(latent.vectors(value), expected)
    (wanted,) = torch.autograd.grad(expected, value, upstream)
    decoded, codes = latent.decoder_input(value)
    assert torch.equal(codes, value.argmax(1))
    assert torch.equal(decoded, vqgan.quantizer.look_up(codes))
    torch.testing.assert_close(torch.autograd.grad(decoded, value, upstream)[0], wanted)


def test_logits_are_not_confined(vqgan: VQGAN) -> None:
    value = 100 * torch.randn(1, K, 2, 2)
    before = value.clone()
    made(vqgan, latent="categorical").clamp_(value)
    assert torch.equal(value, before)


def test_the_vectors_of_a_continuous_value_are_the_value(vqgan: VQGAN) -> None:
    value = torch.randn(1, D, 2, 2, requires_grad=True)
    assert made(vqgan).vectors(value) is value


@pytest.mark.parametrize(("kind", "channels"), [("continuous", D), ("categorical", K)])
def test_a_value_is_resized_by_interpolation(vqgan: VQGAN, kind: str, channels: int) -> None:
    latent, value = made(vqgan, latent=kind), torch.randn(2, channels, 4, 6)
    assert torch.equal(latent.resize(value, (4, 6)), value)
    resized = latent.resize(value, (8, 12))
    assert resized.shape == (2, channels, 8, 12)
    torch.testing.assert_close(resized[:, :, 1, 1], value[:, :, :2, :2].mul(
        torch.tensor([[9.0, 3.0], [3.0, 1.0]]) / 16).sum((2, 3)))  # fmt: skip
    assert resized.amax() <= value.amax()


@pytest.mark.parametrize("kind", ["continuous", "categorical"])
def test_autocast_changes_nothing(vqgan: VQGAN, kind: str) -> None:
    start, upstream = torch.randn(2, D, 8, 8), torch.randn(2, D, 8, 8)

    def everything(autocast: bool) -> list[Tensor]:
        latent = made(vqgan, latent=kind)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = latent.initial_value(start).requires_grad_()
            decoded, codes = latent.decoder_input(value)
            vectors = latent.vectors(value)
        return [value.detach(), decoded, codes, vectors, *torch.autograd.grad(decoded, value, upstream)]

    for a, b in zip(everything(True), everything(False), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["continuous", "categorical"])
def test_float64_stays_float64(vqgan: VQGAN, kind: str) -> None:
    latent = made(vqgan, latent=kind)
    value = latent.initial_value(torch.randn(1, D, 3, 3, dtype=torch.float64))
    decoded, _ = latent.decoder_input(value)
    assert value.dtype == decoded.dtype == latent.vectors(value).dtype == torch.float64
