import copy
import math
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.quantizers.gumbel_quantizer import GumbelQuantizer
from codebrush.models.quantizers.kmeans import kmeans
from codebrush.models.quantizers.quantizer import nearest_codes, straight_through
from codebrush.models.quantizers.vector_quantizer import DEAD_USAGE, USAGE_DECAY, CodebookUpdate, VectorQuantizer

UPDATES: list[CodebookUpdate] = ["gradient", "ema"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clustered(batch: int, centres: Tensor, spread: float = 0.02, side: int = 4) -> Tensor:
    """Latents (B, d, side, side) scattered around `centres` (n, d)."""
    chosen = centres[torch.randint(len(centres), (batch, side, side))]
    return (chosen + spread * torch.randn_like(chosen)).movedim(-1, 1)


def ready(quantizer: VectorQuantizer) -> VectorQuantizer:
    """A quantiser that has its codebook already."""
    torch.nn.init.normal_(quantizer.codebook)
    quantizer.initialised.fill_(True)
    return quantizer


def error(quantizer: VectorQuantizer, latent: Tensor) -> float:
    return float(quantizer.eval()(latent).distance)


@pytest.mark.parametrize("l2_normalized", [True, False])
def test_codes_are_those_of_a_naive_search(l2_normalized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codebrush.models.quantizers.quantizer.SCORE_ELEMENTS", 100)  # several parts
    quantizer = ready(VectorQuantizer(40, 6, l2_normalized=l2_normalized)).eval()
    latent = 3 * torch.randn(2, 6, 3, 5)
    rows, codebook = latent.movedim(1, -1), quantizer.codebook.detach()
    if l2_normalized:
        rows, codebook = F.normalize(rows, dim=-1), F.normalize(codebook, dim=-1)
    distances = (rows[..., None, :] - codebook).square().sum(-1)  # (B, h, w, K)
    quantised, codes = quantizer.quantize(latent)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, distances.argmin(-1))
    torch.testing.assert_close(quantised, codebook[codes].movedim(-1, 1))
    assert torch.equal(quantised, quantizer.look_up(codes))
    assert torch.equal(quantizer(latent).codes, codes)


def test_distances_are_float32_even_under_autocast() -> None:
    quantizer = ready(VectorQuantizer(512, 8)).eval()
    latent = torch.randn(2, 8, 16, 16)
    expected = quantizer.quantize(latent)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.quantize(latent)[1], expected)
        assert torch.equal(quantizer(latent).codes, expected)


@pytest.mark.parametrize("l2_normalized", [True, False])
def test_the_gradient_passes_straight_through(l2_normalized: bool) -> None:
    quantizer = ready(VectorQuantizer(16, 4, l2_normalized=l2_normalized))
    latent = (5 * torch.randn(2, 4, 3, 3)).requires_grad_()
    upstream = torch.randn(2, 4, 3, 3)
    quantised, _ = quantizer.quantize(latent)
    (gradient,) = torch.autograd.grad(quantised, latent, upstream)
    assert torch.equal(gradient, upstream)


def test_training_differentiates_the_normalisation() -> None:
    quantizer = ready(VectorQuantizer(16, 4))
    latent = (5 * torch.randn(2, 4, 3, 3)).requires_grad_()
    upstream = torch.randn(2, 4, 3, 3)
    (gradient,) = torch.autograd.grad(quantizer(latent).quantised, latent, upstream)
    (expected,) = torch.autograd.grad(F.normalize(latent, dim=1), latent, upstream)
    torch.testing.assert_close(gradient, expected)


def test_straight_through_gives_the_very_values() -> None:
    latent, quantised = 1e6 * torch.randn(5), 1e-6 * torch.randn(5)
    assert torch.equal(straight_through(quantised, latent), quantised)


def test_the_loss_weighs_the_pull_on_the_encoder_by_commitment() -> None:
    quantizer = ready(VectorQuantizer(16, 4, l2_normalized=False, commitment=0.25))
    latent = torch.randn(3, 4, 2, 2, requires_grad=True)
    out = quantizer(latent)
    chosen = quantizer.look_up(out.codes).detach()
    torch.testing.assert_close(out.loss, 1.25 * F.mse_loss(latent, chosen))
    out.loss.backward()
    torch.testing.assert_close(latent.grad, 0.25 * 2 * (latent.detach() - chosen) / latent.numel())
    pull = torch.zeros_like(quantizer.codebook)
    pull.index_add_(0, out.codes.flatten(), (chosen - latent.detach()).movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(quantizer.codebook.grad, 2 * pull / latent.numel())


def test_an_ema_codebook_asks_for_no_gradient_and_moves_to_the_mean_of_its_latents() -> None:
    quantizer = ready(VectorQuantizer(2, 2, l2_normalized=False, update="ema"))
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        quantizer.sums.copy_(quantizer.codebook)
    centres = torch.tensor([[2.0, 1.0], [-3.0, -1.0]])
    for _ in range(600):
        out = quantizer(clustered(8, centres).requires_grad_())
    torch.testing.assert_close(quantizer.codebook.detach(), centres, atol=0.02, rtol=0)
    assert not quantizer.codebook.requires_grad
    torch.testing.assert_close(out.loss.detach(), 0.25 * out.distance)


@pytest.mark.parametrize("update", UPDATES)
def test_kmeans_fills_the_codebook_after_some_batches(update: CodebookUpdate) -> None:
    centres = F.normalize(torch.randn(32, 8), dim=1)
    quantizer = VectorQuantizer(32, 8, update=update)
    before = error(quantizer, clustered(16, centres))
    quantizer.train()
    for _ in range(15):  # 16 latents a batch, 8 times 32 wanted
        out = quantizer(clustered(1, centres))
        assert not quantizer.initialised
        torch.testing.assert_close(out.quantised.norm(dim=1), torch.ones(1, 4, 4))
        assert out.loss.item() == 0
    quantizer(clustered(1, centres))
    assert quantizer.initialised
    latent = clustered(16, centres)
    assert error(quantizer, latent) < before / 4
    assert quantizer.nearest(latent).unique().numel() > 0.9 * 32


@pytest.mark.parametrize("spherical", [True, False])
def test_kmeans_beats_random_choice_and_leaves_no_cluster_empty(spherical: bool) -> None:
    vectors = torch.randn(2000, 4)
    if spherical:
        vectors = F.normalize(vectors, dim=1)

    def spread(centres: Tensor) -> float:
        return float((vectors - centres[nearest_codes(vectors, centres)]).square().sum(1).mean())

    chance = spread(vectors[torch.randperm(2000)[:50]])
    centres = kmeans(vectors, 50, spherical=spherical)
    assert spread(centres) < 0.85 * chance
    assert nearest_codes(vectors, centres).unique().numel() == 50
    if spherical:
        torch.testing.assert_close(centres.norm(dim=1), torch.ones(50))


def test_kmeans_depends_on_torchs_random_state_alone_and_bears_few_vectors() -> None:
    vectors = torch.randn(20, 3)
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(kmeans(vectors, 30))
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape == (30, 3)
    assert runs[0].isfinite().all()


@pytest.mark.parametrize("update", UPDATES)
def test_dead_codes_revive(update: CodebookUpdate) -> None:
    quantizer = ready(VectorQuantizer(64, 4, l2_normalized=False, update=update))
    with torch.no_grad():
        quantizer.codebook[8:] += 100.0  # out of every latent's reach
    if update == "ema":
        quantizer.sums.copy_(quantizer.codebook.detach())
    lone = quantizer.codebook.detach()[8:].clone()
    steps = math.ceil(math.log(DEAD_USAGE) / math.log(USAGE_DECAY))
    for _ in range(steps - 1):
        quantizer(torch.randn(4, 4, 4, 4))
    torch.testing.assert_close(quantizer.codebook.detach()[8:], lone)
    for _ in range(2):
        quantizer(torch.randn(4, 4, 4, 4))
    assert quantizer.codebook.detach().abs().max() < 10
    codes = quantizer.eval().nearest(torch.randn(16, 4, 8, 8))
    assert codes.unique().numel() > 0.9 * 64


@pytest.mark.parametrize("update", UPDATES)
def test_a_run_goes_on_exactly_from_its_state(update: CodebookUpdate) -> None:
    """Broken off while it collects, and again later: the resumed quantiser is bit for bit the same."""

    def fresh() -> VectorQuantizer:
        return VectorQuantizer(24, 4, update=update)

    batches = [torch.randn(1, 4, 4, 4) for _ in range(30)]
    straight, broken = fresh(), fresh()
    broken.load_state_dict(straight.state_dict())
    torch.manual_seed(3)
    for latent in batches:
        straight(latent)
    torch.manual_seed(3)
    for index, latent in enumerate(batches):
        if index in (5, 20):
            state = {key: tensor.clone() for key, tensor in broken.state_dict().items()}
            assert ("collected" in state) == (index == 5)
            random_state = torch.get_rng_state()
            broken = fresh()
            broken.load_state_dict(state)
            torch.set_rng_state(random_state)
        broken(latent)
    assert straight.initialised
    for key, tensor in straight.state_dict().items():
        assert torch.equal(broken.state_dict()[key], tensor), key


def test_evaluation_changes_nothing() -> None:
    quantizer = VectorQuantizer(16, 4).eval()
    before = {key: tensor.clone() for key, tensor in quantizer.state_dict().items()}
    latent = torch.randn(8, 4, 8, 8)
    first, second = quantizer(latent), quantizer(latent)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.quantised, second.quantised)
    assert before.keys() == quantizer.state_dict().keys()
    for key, tensor in before.items():
        assert torch.equal(quantizer.state_dict()[key], tensor), key


def test_a_second_pass_before_the_backward_pass_is_allowed() -> None:
    latents = torch.randn(2, 1, 4, 2, 2)
    quantizer = ready(VectorQuantizer(16, 4))
    turn_by_turn = copy.deepcopy(quantizer)

    def loss(quantizer: VectorQuantizer, number: int) -> Tensor:
        torch.manual_seed(number)
        quantizer.share.zero_()  # the codes that go unused are revived at once
        return quantizer(latents[number]).loss

    (loss(quantizer, 0) + loss(quantizer, 1)).backward()
    for number in range(2):
        loss(turn_by_turn, number).backward()
    torch.testing.assert_close(quantizer.codebook.grad, turn_by_turn.codebook.grad)


def test_float64_latents_stay_float64() -> None:
    quantizer = ready(VectorQuantizer(16, 4)).double().eval()
    quantised, _ = quantizer.quantize(torch.randn(1, 4, 2, 2, dtype=torch.float64))
    assert quantised.dtype == torch.float64


@pytest.mark.parametrize("l2_normalized", [True, False])
def test_the_vectors_are_what_is_looked_up(l2_normalized: bool) -> None:
    for quantizer in (ready(VectorQuantizer(20, 4, l2_normalized=l2_normalized)), GumbelQuantizer(20, 4)):
        torch.testing.assert_close(
            quantizer.vectors, quantizer.look_up(torch.arange(20).view(1, 4, 5)).movedim(1, -1).view(20, 4)
        )
        assert quantizer.vectors.requires_grad


def test_gumbel_evaluates_by_arg_max_without_noise() -> None:
    quantizer = GumbelQuantizer(20, 4).eval()
    latent = torch.randn(2, 4, 3, 3)
    quantised, codes = quantizer.quantize(latent)
    assert torch.equal(codes, quantizer.proj(latent).argmax(1))
    assert torch.equal(codes, quantizer.nearest(latent))
    torch.testing.assert_close(quantised, quantizer.codebook[codes].movedim(-1, 1))
    assert torch.equal(quantizer.quantize(latent)[1], codes)


def test_gumbel_gradient_is_that_of_the_softmax() -> None:
    quantizer = GumbelQuantizer(20, 4).eval()
    quantizer.temperature = 0.7
    latent = torch.randn(2, 4, 3, 3, requires_grad=True)
    upstream = torch.randn(2, 4, 3, 3)
    (gradient,) = torch.autograd.grad(quantizer.quantize(latent)[0], latent, upstream)
    soft = (quantizer.proj(latent) / 0.7).softmax(1)
    expected = torch.einsum("bkhw,kd->bdhw", soft, quantizer.codebook)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, latent, upstream)[0])


def test_gumbel_training_draws_codes_in_proportion() -> None:
    quantizer = GumbelQuantizer(3, 2)
    torch.nn.init.zeros_(quantizer.proj.weight)
    share = torch.tensor([0.6, 0.3, 0.1])
    with torch.no_grad():
        quantizer.proj.bias.copy_(share.log())
    codes = quantizer(torch.randn(4, 2, 50, 50)).codes
    drawn = torch.bincount(codes.flatten(), minlength=3) / codes.numel()
    torch.testing.assert_close(drawn, share, atol=0.02, rtol=0)


def test_gumbel_loss_is_the_divergence_from_uniform() -> None:
    quantizer = GumbelQuantizer(5, 3, kl_weight=2.0)
    latent = torch.randn(2, 3, 2, 2)
    share = quantizer.proj(latent).softmax(1)
    entropy = -(share * share.log()).sum(1).mean()
    torch.testing.assert_close(quantizer(latent).loss, 2.0 * (math.log(5) - entropy))


def _train_in_a_group(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # every process has pictures and random numbers of its own
    for update in UPDATES:
        torch.manual_seed(10 + rank)
        quantizer = VectorQuantizer(24, 4, update=update)
        for step in range(30):
            quantizer(torch.randn(1, 4, 4, 4) + rank)
            if step == 20:
                quantizer.share[:5] = 0.0
        torch.save(quantizer.state_dict(), f"{folder}/{update}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_all_processes_hold_the_same_codebook(tmp_path: Path, processes: ForkServerContext) -> None:
    started = [processes.Process(target=_train_in_a_group, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0, 0]
    for update in UPDATES:
        first, second = (torch.load(tmp_path / f"{update}{rank}.pt") for rank in range(2))
        assert first["initialised"]
        for key in first:
            assert torch.equal(first[key], second[key]), key
