"""The loop of guidance on micro models: exact gradients, what each option does, and that a run goes on exactly."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.guided.camera import move_camera
from codebrush.generation.guided.guidance import Guidance, Step
from codebrush.generation.guided.guide_options import OPTIMIZERS, GuideOptions
from codebrush.generation.guided.guided_batch import GuidedBatch, GuidingCLIP, stage_sizes
from codebrush.generation.guided.learning_rate import learning_rate
from codebrush.generation.guided.losses.prompt_loss import PromptEmbeddings
from codebrush.generation.guided.memory.decoder_tiling import DecodePlan
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.latent_files import encoded
from packs import micro_clip, micro_vqgan

SIZE = (32, 32)


@pytest.fixture(scope="module")
def models() -> Any:
    torch.manual_seed(0)
    vqgan, clip = micro_vqgan().requires_grad_(False), micro_clip().requires_grad_(False)
    for block in clip.image_encoder.transformer.blocks:  # untrained, the class token would see next to nothing
        block.attention.out.weight.mul_(50)
    return vqgan, clip


def prompts(clip: Any, count: int = 1, weight: float = 1.0, seed: int = 3) -> PromptEmbeddings:
    vectors = F.normalize(torch.randn(count, clip.embed_dim, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return PromptEmbeddings(vectors, torch.full((count,), weight), torch.full((count,), -torch.inf))


def batch_of(models: Any, pictures: range = range(1), size: tuple[int, int] = SIZE, **options: Any) -> GuidedBatch:
    vqgan, clip = models
    o = GuideOptions(**{"steps": 6, "cutouts": 8, "precision": "float32", **options})
    grid = vqgan.code_grid(stage_sizes(size, o.grow, vqgan.factor)[0])
    codes = torch.stack(
        [torch.randint(128, grid, generator=torch.Generator().manual_seed(9 + index)) for index in pictures]
    )
    initial = vqgan.quantizer.look_up(codes).detach()
    return GuidedBatch(vqgan, [GuidingCLIP(clip, 1.0, (prompts(clip),))], o, 5, pictures, size, initial)


def run(each: GuidedBatch, plan: MemoryPlan | None = None) -> tuple[list[Step], Guidance]:
    guidance = Guidance(each, plan or MemoryPlan(each.options.cutouts))
    return list(guidance.steps()), guidance


def gradient(each: GuidedBatch, plan: MemoryPlan) -> Tensor:
    guidance = Guidance(each, plan)
    guidance.gradient()
    assert guidance.state.value.grad is not None
    return guidance.state.value.grad


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def pale(models: Any) -> Any:
    """With pictures well inside [0, 1], where clamping changes nothing."""
    vqgan, clip = (copy.deepcopy(model) for model in models)
    vqgan.decoder.conv_out.weight.div_(24)
    return vqgan, clip


def double(models: Any) -> Any:
    return tuple(model.double() for model in pale(models))


@pytest.mark.parametrize("quantise", [False, True])
def test_the_gradient_agrees_with_finite_differences(models: Any, quantise: bool) -> None:
    each = batch_of(double(models), quantise=quantise, tv=0.3, saturation=0.2, noise=0.1, pad=0.2)
    each = replace(each, initial=each.initial.double(), clips=[in_double(guide) for guide in each.clips])
    guidance = Guidance(each, MemoryPlan(3))
    guidance.gradient()
    analytic = guidance.state.value.grad
    assert analytic is not None
    quantised = guidance.latent.decoder_input(guidance.state.value)[0].detach()

    def loss(latent: Tensor) -> float:
        plain = Guidance(replace(each, options=replace(each.options, quantise=False)), MemoryPlan(8))
        plain.state.value = latent.clone().requires_grad_()
        return plain.gradient()["loss"]

    generator, epsilon = torch.Generator().manual_seed(1), 1e-5
    for _ in range(4):
        way = torch.randn(quantised.shape, generator=generator, dtype=torch.float64)
        slope = (loss(quantised + epsilon * way) - loss(quantised - epsilon * way)) / (2 * epsilon)
        assert slope == pytest.approx(float((analytic * way).sum()), rel=1e-5, abs=1e-9)


def in_double(guide: GuidingCLIP) -> GuidingCLIP:
    chapters = [
        PromptEmbeddings(each.embeddings.double(), each.weights.double(), each.stops.double())
        for each in guide.chapters
    ]
    return replace(guide, chapters=tuple(chapters))


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 16])
def test_the_gradient_does_not_depend_on_the_micro_batch(models: Any, micro_batch: int) -> None:
    each = batch_of(models, range(2), cutouts=8)
    assert relative(gradient(each, MemoryPlan(micro_batch)), gradient(each, MemoryPlan(16))) < 1e-5


def test_the_gradient_does_not_depend_on_checkpoints(models: Any) -> None:
    each = batch_of(models)
    plans = (MemoryPlan(8, DecodePlan(checkpoint=True)), MemoryPlan(8))
    assert relative(*(gradient(each, plan) for plan in plans)) < 1e-5


def test_a_picture_does_not_depend_on_those_beside_it(models: Any) -> None:
    _, both = run(batch_of(models, range(2), tv=0.1, init_weight=0.1))
    alone = batch_of(models, range(2), tv=0.1, init_weight=0.1)
    _, second = run(replace(alone, pictures=range(1, 2), initial=alone.initial[1:]))
    torch.testing.assert_close(both.state.value[1:], second.state.value, rtol=1e-3, atol=1e-3)


CALM = {
    "crop_std": 0.0,
    "crop_min": 1.0,
    "crop_max": 1.0,
    "pad": 0.0,
    "cutouts": 1,
    "learning_rate": 0.3,
} | dict.fromkeys(("flip", "turn", "shift", "colour", "noise"), 0.0)


def test_guidance_reaches_what_a_picture_can_show(models: Any) -> None:
    vqgan, clip = models
    seen = clip.encode_image(vqgan.decode_codes(torch.randint(128, (1, 8, 8))).clamp(0, 1))
    reachable = PromptEmbeddings(seen, torch.ones(1), torch.full((1,), -torch.inf))
    each = replace(batch_of(models, steps=60, quantise=False, **CALM), clips=[GuidingCLIP(clip, 1.0, (reachable,))])
    steps, _ = run(each)
    assert steps[-1].losses["loss"] < 0.02 * steps[0].losses["loss"]
    assert steps[-1].losses["similarity"] > steps[0].losses["similarity"]
    assert [step.step for step in steps] == list(range(1, 61))


def test_a_run_goes_on_exactly(models: Any) -> None:
    each = batch_of(models, steps=12, ema=0.5, grow=2, move_every=5, zoom=1.1, schedule="cosine", patience=100)
    whole, end = run(each)
    first = Guidance(each, MemoryPlan(8))
    for step in first.steps():
        if step.step == 7:
            break
    stored = copy.deepcopy(first.snapshot())
    second = Guidance(each, MemoryPlan(8), stored)
    rest = list(second.steps())
    assert [step.losses for step in rest] == [step.losses for step in whole[7:]]
    assert torch.equal(second.state.value, end.state.value)
    assert torch.equal(second.shown()[0], end.shown()[0])


def test_init_weight_pulls_to_the_start_and_not_to_zero(models: Any) -> None:
    free, held = (run(batch_of(models, steps=25, init_weight=weight, clamp=False))[1] for weight in (0.0, 300.0))
    start = held.state.anchor

    def away(guidance: Guidance) -> float:
        return float((guidance.state.value.detach() - start).norm())

    assert away(held) < 0.5 * away(free)
    assert float(held.state.value.detach().norm()) > 0.9 * float(start.norm())


def test_a_mask_leaves_the_rest_alone(models: Any) -> None:
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., :16] = 1
    each = replace(batch_of(models, wd=0.1), mask=mask)
    _, guidance = run(each)
    moved = (guidance.state.value - guidance.state.anchor).abs().amax((0, 1, 2))  # (w,)
    assert bool((moved[:4] > 0).all())
    assert bool((moved[4:] == 0).all())


def test_ema_shows_the_mean_of_what_was(models: Any) -> None:
    each = batch_of(models, steps=3, ema=0.5, quantise=False)
    guidance = Guidance(each, MemoryPlan(8))
    values = [guidance.state.value.detach().clone() for _ in guidance.steps()]
    expected = (values[0] * 0.25 + values[1] * 0.5 + values[2]) / 1.75
    torch.testing.assert_close(guidance.shown()[0], expected)


def test_growth_ends_at_the_full_size(models: Any) -> None:
    each = batch_of(models, size=(32, 64), grow=3, steps=9)
    assert stage_sizes((32, 64), 3, 4) == [(8, 16), (16, 32), (32, 64)]
    shapes = [tuple(step.images().shape[-2:]) for step in Guidance(each, MemoryPlan(8)).steps()]
    assert shapes == [(8, 16)] * 3 + [(16, 32)] * 3 + [(32, 64)] * 3


def test_a_story_changes_its_target(models: Any) -> None:
    clip = models[1]
    one, two = prompts(clip, seed=1), prompts(clip, seed=2)
    each = batch_of(models, steps=4)

    def first_values(*chapters: PromptEmbeddings, **options: Any) -> list[Tensor]:
        changed = replace(each, clips=[GuidingCLIP(clip, 1.0, chapters)], options=replace(each.options, **options))
        guidance = Guidance(changed, MemoryPlan(8))
        return [guidance.state.value.detach().clone() for _ in guidance.steps()]

    both, alone = first_values(one, two), first_values(one)
    assert [torch.equal(a, b) for a, b in zip(both, alone, strict=True)] == [True, True, False, False]
    early = first_values(one, two, story_every=1)
    assert [torch.equal(a, b) for a, b in zip(early, alone, strict=True)] == [True, False, False, False]


def test_several_clips_add_up(models: Any) -> None:
    vqgan, clip = pale(models)
    torch.manual_seed(8)
    other = micro_clip().requires_grad_(False)
    each = batch_of((vqgan, clip))
    guides = [GuidingCLIP(clip, 0.7, (prompts(clip),)), GuidingCLIP(other, 0.3, (prompts(other, seed=4),))]
    both = gradient(replace(each, clips=guides), MemoryPlan(8))
    parts = [gradient(replace(each, clips=[guide]), MemoryPlan(8)) for guide in guides]
    assert relative(parts[0] + parts[1], both) < 1e-5


def test_targets_in_pixels_attract(models: Any) -> None:
    wanted = models[0].decode_codes(torch.randint(128, (1, 8, 8))).clamp(0, 1)
    each = replace(batch_of(models, steps=60), clips=[GuidingCLIP(models[1], 1e-6, (prompts(models[1]),))])
    steps, _ = run(replace(each, targets=[(wanted, 1.0)]))
    assert steps[-1].losses["target"] < 0.75 * steps[0].losses["target"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_the_step_of_torch_optim(models: Any, name: str) -> None:
    each = batch_of(models, steps=1, optimizer=name, clamp=False)
    _, guidance = run(each)
    value = guidance.state.anchor.clone().requires_grad_()
    value.grad = gradient(each, MemoryPlan(8))
    settings = {} if name == "Rprop" else {"weight_decay": 0.0}
    getattr(torch.optim, name)([value], lr=0.1, **settings).step()
    assert torch.equal(guidance.state.value, value)
    assert not torch.equal(value, guidance.state.anchor)


def test_weight_decay_reaches_the_optimizer(models: Any) -> None:
    far, near = (run(batch_of(models, steps=5, wd=wd, clamp=False))[1].state.value for wd in (0.0, 2.0))
    assert near.norm() < 0.7 * far.norm()
    with pytest.raises(UsageError, match="Rprop has no weight decay"):
        run(batch_of(models, optimizer="Rprop", wd=0.1))


def test_the_learning_rate_follows_its_schedule() -> None:
    def rates(**options: Any) -> list[float]:
        o = GuideOptions(steps=4, learning_rate=1.0, **options)
        return [round(learning_rate(step, o), 3) for step in range(4)]

    assert rates() == [1, 1, 1, 1]
    assert rates(schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(schedule="cosine") == [1, 0.854, 0.5, 0.146]
    assert rates(schedule="linear", warmup=2) == [0.5, 1, 1, 0.5]
    assert learning_rate(2, GuideOptions(steps=4, schedule="linear", learning_rate=0.6)) == pytest.approx(0.3)


def test_a_plateau_ends_the_run(models: Any) -> None:
    steps, guidance = run(batch_of(models, steps=50, patience=5, learning_rate=1e-9))
    assert len(steps) < 12
    assert guidance.state.finished
    assert steps[-1].shown
    assert "has not fallen" in steps[-1].events[0]


def test_a_plateau_waits_for_what_is_still_to_come(models: Any) -> None:
    clip, still = models[1], {**CALM, "steps": 60, "patience": 5, "learning_rate": 1e-9}
    grown, _ = run(batch_of(models, grow=2, **still))
    assert grown[-1].images().shape[-2:] == SIZE
    assert len(grown) == 30 + 6  # the first step of a stage sets the mark
    short, _ = run(
        replace(
            batch_of(models, **still), clips=[GuidingCLIP(clip, 1.0, (prompts(clip, seed=1), prompts(clip, seed=2)))]
        )
    )
    assert len(short) == 30 + 6


def test_moves_carry_the_picture(models: Any) -> None:
    each = batch_of(models, steps=4, move_every=2, pan="8,0", zoom=1.2, roll=5.0, learning_rate=1e-12, clamp=False)
    guidance = Guidance(each, MemoryPlan(8))
    latents = [step.latent()[0] for step in guidance.steps()]
    moved = move_camera(guidance.decode(latents[0]).clamp(0, 1), 1.2, (8.0, 0.0), 5.0)
    expected = guidance.latent.decoder_input(guidance.latent.initial_value(encoded(each.vqgan, moved)))[0]
    assert torch.equal(latents[1], expected)
    assert torch.equal(latents[2], expected)
    assert torch.equal(latents[3], expected)  # the last step is not moved away from what it shows


def out_of_memory(models: Any, most: int) -> Any:
    """The models, with a CLIP that runs out of memory if it is shown more than `most` views at once."""

    def check(_: Any, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("no memory")

    vqgan, clip = models[0], copy.deepcopy(models[1])
    clip.image_encoder.register_forward_pre_hook(check)
    return vqgan, clip


def test_memory_that_runs_out_halves_the_micro_batch(models: Any) -> None:
    plain, _ = run(batch_of(models, steps=2))
    steps, guidance = run(batch_of(out_of_memory(models, 2), steps=2))
    assert guidance.plan.micro_batch == 2
    assert steps[0].events == ("memory ran out: micro-batch 8 -> 4", "memory ran out: micro-batch 4 -> 2")
    assert steps[1].events == ()
    assert steps[1].losses["loss"] == pytest.approx(plain[1].losses["loss"], rel=1e-4)
    with pytest.raises(CodebrushError, match="one view at a time"):
        run(batch_of(out_of_memory(models, 0), steps=2))


def test_a_loss_that_is_not_finite_is_an_error(models: Any) -> None:
    vqgan = copy.deepcopy(models[0])
    vqgan.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(CodebrushError, match="step 1 is not finite"):
        run(batch_of((vqgan, models[1])))


def test_bf16_keeps_the_direction_of_the_gradient(models: Any) -> None:
    exact, fast = (gradient(batch_of(models, precision=p), MemoryPlan(8)) for p in ("float32", "bf16"))
    assert F.cosine_similarity(exact.flatten(), fast.flatten(), dim=0) > 0.9
