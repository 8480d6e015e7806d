"""What each option of guidance does to a run: exactly what a plain computation does, and in the direction it should."""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from plain_guidance import plain_guidance
from torch import Tensor

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image, save_png, to_pil, to_tensor
from codebrush.generation.guided.guide_options import GuideOptions, guide_options
from codebrush.generation.guided.losses.penalties import asymmetry, palette_distance, parse_palette, total_variation
from codebrush.generation.guided.run.guided_run import GuidedRun
from packs import write_micro_pack

BASE = {"init": "random", "steps": 2, "cutouts": 4, "precision": "float32", "learning_rate": 0.3, "quantise": False}
QUANTISED = {"quantise": True}
SGD = {"optimizer": "SGD", "learning_rate": 50.0}
EFFECTS: dict[str, list[dict[str, Any]]] = {
    "run": [{"steps": 3}, {"size": "64x32"}, {"grow": 2}],
    "prompts": [
        {"include": "a cat"}, {"exclude": "a cat"}, {"exclude": "a cat", "beta": 3.0},
        {"exclude": "a cat", "alpha": 0.5}, {"extra": "red"}, {"extra": ("red", "round"), "w1": 0.2},
        {"extra": "red", "w2": 1.0}, {"noise_prompt": "7:0.5"}, {"image_prompt": "FILE:50", **SGD},
        {"target": "FILE:2"}, {"story": "a cat", "story_every": 1}, {"distance": "cosine", **SGD},
        {"other_clip": "PACK:0.5"}, {"other_clip": "PACK", "own_clip_weight": 0.0}, {"mask": "FILE"},
        {"mask": "FILE", "mask_side": "outside"},
    ],
    "cutouts": [
        {"cutouts": 5}, {"crop_mean": 0.7}, {"crop_std": 0.0}, {"crop_min": 0.9}, {"crop_max": 0.8}, {"pad": 0.5},
        {"beyond": "zeros"}, {"flip": 0.0}, {"turn": 45.0}, {"shift": 0.4}, {"perspective": 0.5}, {"colour": 0.4},
        {"noise": 0.4}, {"shared_affine": True, **SGD}, {"antialias": False, "size": "128x128"},
    ],
    "latent": [
        {"init": "sine"}, {"init": "fractal"}, {"init": "gradient"}, {"init": "sample"}, {"init": "FILE"},
        {"init_weight": 5.0}, {"latent": "categorical"}, {"latent": "categorical", "code_temperature": 0.1}, QUANTISED,
        {"clamp": False, "learning_rate": 1.0}, {"ema": 0.9}, {"seamless": True}, {"seamless": True, **QUANTISED},
    ],
    "optimiser": [
        SGD, {"learning_rate": 0.2}, {"wd": 1.0}, {"schedule": "cosine"},
        {"schedule": "linear"}, {"warmup": 2},
    ],
    "penalties": [
        {"tv": 50.0}, {"saturation": 50.0}, {"saturation": -50.0}, {"overflow": 500.0}, {"palette": "#ff0000,#0000ff"},
        {"palette": "#ff0000,#0000ff", "palette_weight": 50.0}, {"symmetry": "horizontal"},
        {"symmetry": "horizontal", "symmetry_weight": 50.0},
    ],
    "camera": [{"move_every": 1, "zoom": 1.5}, {"move_every": 1, "pan": "5,0"}, {"move_every": 1, "roll": 30.0}],
    "memory": [{"tile": 16}],
    "presets": [{"preset": "notebook", "steps": 2}, {"preset": "refine", "steps": 2}],
}  # fmt: skip
# What a value is compared with, where that is not the default: options that mean something beside another one only.
BESIDE = {
    "beta": ("exclude",), "alpha": ("exclude",), "w1": ("extra",), "w2": ("extra",), "mask_side": ("mask",),
    "own_clip_weight": ("other_clip",), "code_temperature": ("latent",), "palette_weight": ("palette",),
    "symmetry_weight": ("symmetry",),  "antialias": ("size",),
    "distance": tuple(SGD), "image_prompt": tuple(SGD), "shared_affine": tuple(SGD),
}  # fmt: skip
ELSEWHERE = {  # options that change how a run goes and not what it draws, each with a test elsewhere
    "batch_size", "show_every", "patience", "min_delta", "precision", "max_memory", "micro_batch",
    "keep", "score_every", "score_patience",
}  # fmt: skip


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A picture whose left half is white, and another pack."""
    folder = tmp_path_factory.mktemp("effects")
    picture = Image.new("RGB", (32, 32), "navy")
    picture.paste("white", (0, 0, 16, 32))
    save_png(picture, folder / "half.png")
    return {"FILE": str(folder / "half.png"), "PACK": str(write_micro_pack(folder / "other", seed=9))}


@pytest.fixture(scope="module")
def bases() -> dict[str, Image.Image]:
    """The pictures that are compared with, as far as they have been made, by their options."""
    return {}


def named(options: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The options with the paths of what they name."""
    found = dict(options)
    for name, value in options.items():
        word, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if word in names:
            found[name] = names[word] + colon + rest
    return found


def guided(brush: Codebrush, **options: Any) -> tuple[GuidedRun, list[dict[str, float]]]:
    run = brush.guide("a dog", **options)
    losses = [step.losses for step in run]
    return run, losses


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean absolute difference of two pictures, in levels of 255; infinite where their sizes differ."""
    if one.size != other.size:
        return math.inf
    return float((to_tensor(one) - to_tensor(other)).abs().mean()) * 255


def test_every_option_is_tried() -> None:
    tried = {name for group in EFFECTS.values() for options in group for name in options} - {"preset"}
    assert tried | ELSEWHERE == {option.name for option in fields(GuideOptions)}


@pytest.mark.parametrize("options", [options for group in EFFECTS.values() for options in group], ids=str)
def test_every_option_does_what_a_plain_computation_does(
    brush: Codebrush, names: dict[str, str], bases: dict[str, Image.Image], options: dict[str, Any]
) -> None:
    given = {**BASE, **named(options, names)}
    run, losses = guided(brush, **given)
    preset = given.pop("preset", None)
    image, plain = plain_guidance(brush, "a dog", guide_options(given, preset))
    for found, expected in zip(losses, plain, strict=True):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert found["loss"] == pytest.approx(sum(expected.values()), rel=1e-4, abs=1e-6)

    kept = {name for option in options for name in BESIDE.get(option, ())}
    base = BASE | {name: given[name] for name in sorted(kept)}
    if str(base) not in bases:
        bases[str(base)] = guided(brush, **base)[0].results[0].image
    error, effect = (difference(run.results[0].image, each) for each in (to_pil(image), bases[str(base)]))
    # At most 0.16 and at least 2.5 on three kinds of processor: Adam may turn rounding of a small gradient into more.
    assert error < 0.25
    assert effect > 1


@pytest.fixture(scope="module")
def free(brush: Codebrush) -> GuidedRun:
    return guided(brush, **LONGER)[0]


@pytest.fixture(scope="module")
def begun(brush: Codebrush) -> Tensor:
    """The latent (d, h, w) that the runs begin with."""
    return guided(brush, **{**LONGER, "steps": 0})[0].results[0].latent


LONGER = {**BASE, "steps": 12, "learning_rate": 0.05, "clamp": False}
Measure = Callable[[Tensor], Tensor]
PALETTE = "#ff0000,#0000ff"
PIXELS: list[tuple[dict[str, Any], Measure, int]] = [  # options, what they lower (-1) or raise (1) of the picture
    ({"tv": 50.0}, total_variation, -1),
    ({"saturation": 50.0}, lambda images: (images.amax(1) - images.amin(1)).mean(), -1),
    ({"saturation": -50.0}, lambda images: (images.amax(1) - images.amin(1)).mean(), 1),
    ({"palette": PALETTE, "palette_weight": 50.0}, lambda images: palette_distance(images, parse_palette(PALETTE)), -1),
    ({"symmetry": "horizontal", "symmetry_weight": 50.0}, lambda images: asymmetry(images, "horizontal"), -1),
    ({"symmetry": "vertical", "symmetry_weight": 50.0}, lambda images: asymmetry(images, "vertical"), -1),
]


@pytest.mark.parametrize(
    ("options", "measure", "sign"), PIXELS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_a_penalty_changes_what_it_measures(
    brush: Codebrush, free: GuidedRun, options: dict[str, Any], measure: Measure, sign: int
) -> None:
    held, _ = guided(brush, **LONGER | options)
    before, after = (float(measure(to_tensor(run.results[0].image)[None])) for run in (free, held))
    assert sign * (after - before) > 0.1 * before


def test_overflow_brings_pixels_back_into_range(brush: Codebrush, free: GuidedRun) -> None:
    def beyond(run: GuidedRun) -> float:
        raw = brush.vqgan.decode(run.results[0].latent[None]).detach()
        return float((raw - raw.clamp(0, 1)).abs().mean())

    assert beyond(guided(brush, **LONGER, overflow=50.0)[0]) < 0.9 * beyond(free)


def test_a_target_is_approached(brush: Codebrush, free: GuidedRun, names: dict[str, str]) -> None:
    wanted = to_tensor(decode_image(names["FILE"]))
    held, _ = guided(brush, **LONGER, target=f"{names['FILE']}:50")
    before, after = (float((to_tensor(run.results[0].image) - wanted).square().mean()) for run in (free, held))
    assert after < 0.8 * before


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        ({"init_weight": 100.0}, -1), ({"ema": 0.95}, -1), ({"schedule": "linear"}, -1), ({"schedule": "cosine"}, -1),
        ({"warmup": 8}, -1), ({"learning_rate": 0.01}, -1), ({"learning_rate": 0.2}, 1), ({"steps": 24}, 1),
    ],
    ids=str,
)  # fmt: skip
def test_how_far_a_run_gets_from_where_it_began(
    brush: Codebrush, free: GuidedRun, begun: Tensor, options: dict[str, Any], sign: int
) -> None:
    other, _ = guided(brush, **LONGER | options)
    before, after = (float((run.results[0].latent - begun).norm()) for run in (free, other))
    assert sign * (after - before) > 0.1 * before


def test_weight_decay_shortens_the_latent(brush: Codebrush, free: GuidedRun) -> None:
    decayed, _ = guided(brush, **LONGER, wd=1.0)
    assert decayed.results[0].latent.norm() < 0.8 * free.results[0].latent.norm()


@pytest.mark.parametrize(("side", "guided_half"), [("inside", slice(0, 4)), ("outside", slice(4, 8))])
def test_a_mask_leaves_the_latent_beside_it(
    brush: Codebrush, names: dict[str, str], begun: Tensor, side: str, guided_half: slice
) -> None:
    run, _ = guided(brush, **LONGER, mask=names["FILE"], mask_side=side)
    moved = (run.results[0].latent - begun).abs().amax((0, 1)) > 0  # (w,)
    expected = torch.zeros(8, dtype=torch.bool)
    expected[guided_half] = True
    assert torch.equal(moved, expected)
