"""Decoding in parts: what is exact is tested as exact, and what is not within the bounds that were measured."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.generation.guided.memory import decoder_tiling as tiling
from codebrush.generation.guided.memory.decoder_tiling import DecodePlan, decode
from codebrush.models.layers.convolution import GroupNormSiLU
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from packs import micro_vqgan

PLAIN = DecodePlan()

# Bounds a little above what four random micro decoders gave, in standard deviations of the picture. Their weights are
# untrained and look far; the built-in pack's decoder is ten times closer (0.011 to 0.013, and 0.01 to 0.07 when moved).
MEAN_ERROR = 0.15  # of tiles of 16 cells that share 8: 0.133 to 0.139
GRADIENT_COSINE = 0.94  # of their gradient and the whole one's: 0.952 to 0.955
SEAM_FACTOR = 1.0  # steps of their error where tiles end, against the others: 0.46 to 0.63
MOVED_ERROR = 0.14  # of a seamless picture moved around its edges: 0.07 to 0.134, and a plain one 0.79 to 1.01
EDGE_ERROR = 0.06  # of the step across its edge: 0.029 to 0.051, and of a plain one 0.91 to 1.32


@pytest.fixture
def vqgan() -> VQGAN:
    return micro_vqgan().requires_grad_(False)


@pytest.fixture
def attentive() -> VQGAN:
    """With attention in the middle and on the code grid, as the published ones have."""
    config = replace(vqgan_micro(), attention_resolutions=(8,), middle_attention=True)
    return VQGAN(config).eval().requires_grad_(False)


def codes_of(vqgan: VQGAN, *grid: int, batch: int = 1) -> Tensor:
    """A quantised latent (B, d, h, w) of random codes that wants a gradient."""
    return vqgan.quantizer.look_up(torch.randint(128, (batch, *grid))).requires_grad_()


def gradient(vqgan: VQGAN, latent: Tensor, plan: DecodePlan) -> tuple[Tensor, Tensor]:
    """The pictures, and the latent's gradient from an uneven weight of each pixel."""
    images = decode(vqgan, latent, plan)
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).to(images.dtype)
    return images.detach(), torch.autograd.grad((images * weights).sum(), latent)[0]


def test_a_plain_plan_is_the_decoder(vqgan: VQGAN) -> None:
    latent = codes_of(vqgan, 8, 6)
    assert torch.equal(decode(vqgan, latent, PLAIN), vqgan.decode(latent))


@pytest.mark.parametrize("plan", [DecodePlan(tile=8), DecodePlan(tile=99, overlap=50), DecodePlan(tile=8, overlap=0)])
def test_a_tile_that_covers_all_changes_nothing(vqgan: VQGAN, plan: DecodePlan) -> None:
    latent = codes_of(vqgan, 8, 6, batch=2)
    for found, expected in zip(gradient(vqgan, latent, plan), gradient(vqgan, latent, PLAIN), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["vqgan", "attentive"])
def test_checkpoints_change_neither_pictures_nor_gradients(kind: str, request: pytest.FixtureRequest) -> None:
    vqgan = request.getfixturevalue(kind)
    latent = codes_of(vqgan, 8, 6, batch=2)
    expected = gradient(vqgan, latent, PLAIN)
    for found, wanted in zip(gradient(vqgan, latent, DecodePlan(checkpoint=True)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", [PLAIN, DecodePlan(checkpoint=True), DecodePlan(seamless=True)])
def test_the_gradient_agrees_with_finite_differences(vqgan: VQGAN, plan: DecodePlan) -> None:
    vqgan = vqgan.double()
    latent = codes_of(vqgan, 6, 6)
    weights = torch.randn(1, 3, 24, 24, dtype=torch.float64)

    def loss(latent: Tensor) -> Tensor:
        return (decode(vqgan, latent, plan) * weights).square().sum()

    (slope,) = torch.autograd.grad(loss(latent), latent)
    for _ in range(3):
        way = 1e-6 * torch.randn_like(latent).detach()
        difference = (loss(latent.detach() + way) - loss(latent.detach() - way)) / 2
        torch.testing.assert_close((slope * way).sum(), difference, rtol=1e-6, atol=1e-10)


def kept_bytes(vqgan: VQGAN, latent: Tensor, plan: DecodePlan) -> int:
    """What autograd holds between the passes, beside the weights."""
    storages = {}
    weights = {weight.untyped_storage().data_ptr() for weight in vqgan.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = decode(vqgan, latent, plan)
    assert held.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def test_checkpoints_and_tiles_keep_less(vqgan: VQGAN) -> None:
    latent = codes_of(vqgan, 24, 24)
    plain = kept_bytes(vqgan, latent, PLAIN)
    assert kept_bytes(vqgan, latent, DecodePlan(checkpoint=True)) < plain / 2
    assert kept_bytes(vqgan, latent, DecodePlan(tile=12)) < plain / 4


class _Pointwise(nn.Module):
    """A decoder that sees one cell for each pixel, so that tiles of it must agree with the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.grow = nn.Conv2d(16, 3, 1), nn.Upsample(scale_factor=4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.grow(self.mix(x))


@pytest.mark.parametrize(("tile", "overlap"), [(4, 2), (5, 4), (3, 0), (6, 9), (1, 0), (7, 3)])
def test_tiles_are_put_where_they_belong(vqgan: VQGAN, tile: int, overlap: int) -> None:
    vqgan.decoder = _Pointwise()  # pyright: ignore[reportAttributeAccessIssue]
    for grid in ((9, 13), (4, 11), (10, 5)):
        latent = codes_of(vqgan, *grid, batch=2)
        found = gradient(vqgan, latent, DecodePlan(tile=tile, overlap=overlap))
        for part, whole in zip(found, gradient(vqgan, latent, PLAIN), strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", range(2, 30))
def test_tiles_overlap_by_what_was_asked_and_no_longer_than_needed(size: int) -> None:
    for tile, overlap in product(range(1, size), range(4)):
        spans = tiling._spans(size, tile, overlap)
        assert spans[0].start == 0
        assert spans[-1].stop == size
        assert all(len(span) == tile for span in spans)
        shared = [a.stop - b.start for a, b in pairwise(spans)]
        assert min(shared) >= min(overlap, tile - 1)
        assert max(shared) - min(shared) <= 1


def test_tiles_keep_the_statistics_of_the_whole(vqgan: VQGAN) -> None:
    """Away from a tile's own border its pixels are those of the whole, with whatever contrast the rest has."""
    latent = codes_of(vqgan, 44, 44)
    flat = latent.detach().clone()
    flat[:, :, :30] = flat[:, :, :1, :1]  # one code everywhere but below: a tile of it has little contrast
    flat.requires_grad_()
    whole = decode(vqgan, flat, PLAIN)
    tiled = decode(vqgan, flat, DecodePlan(tile=30, overlap=16))
    middle = (slice(None), slice(None), slice(0, 30), slice(0, 30))  # over 13 cells from the tile's border
    torch.testing.assert_close(tiled[middle], whole[middle], rtol=1e-4, atol=1e-4)
    alone = vqgan.decode(flat[:, :, :30, :30])  # by its own statistics it would be another picture
    assert (alone[middle] - whole[middle]).abs().mean() > 0.1 * whole.std()


def test_a_tiled_picture_is_close_to_the_whole_without_seams(vqgan: VQGAN) -> None:
    latent = codes_of(vqgan, 32, 32)
    images, slope = gradient(vqgan, latent, DecodePlan(tile=16, overlap=8))
    whole, wanted = gradient(vqgan, latent, PLAIN)
    error = (images - whole).abs().mean(1)[0]  # (H, W)
    assert error.mean() < MEAN_ERROR * whole.std()
    assert F.cosine_similarity(slope.flatten(), wanted.flatten(), dim=0) > GRADIENT_COSINE
    # A seam would be a step between neighbouring pixels that the whole has not, where a tile begins or ends.
    steps = (images - whole).diff(dim=3).abs().mean((0, 1, 2))  # (W - 1,)
    borders = [32, 64, 96]  # spans 0-16, 8-24, 16-32 cells of 4 pixels
    assert max(steps[border - 1] for border in borders) < SEAM_FACTOR * steps[24:104].median()


def test_without_a_gradient_the_picture_is_decoded_whole(vqgan: VQGAN) -> None:
    latent = codes_of(vqgan, 16, 16)
    with torch.no_grad():
        assert torch.equal(decode(vqgan, latent, DecodePlan(tile=8)), vqgan.decode(latent))
    assert torch.equal(decode(vqgan, latent.detach(), DecodePlan(tile=8, checkpoint=True)), vqgan.decode(latent))


def test_tiles_leave_the_model_as_it_was(vqgan: VQGAN) -> None:
    latent = codes_of(vqgan, 12, 12)
    before, modules = vqgan.decode(latent), [type(module) for module in vqgan.modules()]
    gradient(vqgan, latent, DecodePlan(tile=6))
    assert [type(module) for module in vqgan.modules()] == modules
    assert torch.equal(vqgan.decode(latent), before)


def test_tiles_work_with_attention_and_under_autocast(attentive: VQGAN) -> None:
    latent = codes_of(attentive, 16, 12, batch=2)
    plan = DecodePlan(tile=12, overlap=8)
    whole, _ = gradient(attentive, latent, PLAIN)
    with torch.autocast("cpu", torch.bfloat16):
        images = decode(attentive, latent, plan)
    images.float().sum().backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()
    assert images.shape == whole.shape
    assert (images - whole).abs().mean() < 0.2 * whole.std()


def rolled(vqgan: VQGAN, latent: Tensor, decoder: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The picture, and that of the latent moved by 3 and 5 cells, moved back."""
    back = (-3 * vqgan.factor, -5 * vqgan.factor)
    with torch.no_grad():
        return decoder(latent), decoder(latent.roll((3, 5), (2, 3))).roll(back, (2, 3))


def without_norms(vqgan: VQGAN) -> VQGAN:
    """The same but for its norms: what is left sees no farther than its convolutions reach, some 13 cells."""
    for name, module in list(vqgan.decoder.named_modules()):
        if isinstance(module, GroupNormSiLU):
            parent, _, child = name.rpartition(".")
            setattr(vqgan.decoder.get_submodule(parent), child, nn.SiLU())
    return vqgan


@pytest.mark.parametrize("grid", [(8, 8), (10, 14), (4, 7)])
def test_a_seamless_picture_may_be_moved_around_its_edges(vqgan: VQGAN, grid: tuple[int, int]) -> None:
    """Close, not exact: GroupNorm's statistics and the border of what is cut off change a little with the move."""
    latent = codes_of(vqgan, *grid)
    images, moved = rolled(vqgan, latent, lambda latent: decode(vqgan, latent, DecodePlan(seamless=True)))
    assert images.shape == (1, 3, 4 * grid[0], 4 * grid[1])
    assert (images - moved).abs().mean() < MOVED_ERROR * images.std()
    plain, plain_moved = rolled(vqgan, latent, vqgan.decode)
    assert (plain - plain_moved).abs().mean() > 5 * MOVED_ERROR * images.std()


def test_seamless_without_norms_is_exact_when_what_is_around_reaches_far_enough(
    vqgan: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    vqgan, latent = without_norms(vqgan), codes_of(vqgan, 8, 6)
    monkeypatch.setattr(tiling, "SEAM", 14)
    images, moved = rolled(vqgan, latent, lambda latent: decode(vqgan, latent, DecodePlan(seamless=True)))
    torch.testing.assert_close(images, moved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [2, 3])
def test_the_step_across_an_edge_is_that_of_the_same_cells_inside(vqgan: VQGAN, axis: int) -> None:
    """The latent repeats after 8 cells of 16, so that across the edge lie the same cells as in the middle."""
    latent = codes_of(vqgan, 8, 8).detach().tile(1, 1, 2, 2)

    def misfit(images: Tensor) -> float:
        steps = (images - images.roll(1, axis)).transpose(axis, 3)  # (1, 3, H, W): the first is across the edge
        return float((steps[..., 0] - steps[..., 32]).abs().mean() / steps[..., 32].abs().mean())

    assert misfit(decode(vqgan, latent, DecodePlan(seamless=True))) < EDGE_ERROR
    assert misfit(decode(vqgan, latent, PLAIN)) > 5 * EDGE_ERROR


def test_seamless_and_tiled_together(vqgan: VQGAN) -> None:
    latent = codes_of(vqgan, 16, 16)
    images, slope = gradient(vqgan, latent, DecodePlan(tile=24, overlap=16, seamless=True))
    whole, wanted = gradient(vqgan, latent, DecodePlan(seamless=True))
    assert (images - whole).abs().mean() < MEAN_ERROR * whole.std()
    assert F.cosine_similarity(slope.flatten(), wanted.flatten(), dim=0) > GRADIENT_COSINE
