"""The table of guidance's options: ranges, presets, and what comes before what."""

import dataclasses
import math
from typing import Any

import pytest

from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions, guide_options
from codebrush.generation.guided.presets import PRESETS

TOPICS = ("run", "prompts", "cutouts", "latent", "optimiser", "penalties", "camera", "memory")
OPTIONS = dataclasses.fields(GuideOptions)
NUMBERS = [option for option in OPTIONS if option.metadata["kind"] in (int, float)]


def named(option: "dataclasses.Field[Any]") -> str:
    return option.name


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_every_option_has_a_topic_help_and_a_default_that_works(option: "dataclasses.Field[Any]") -> None:
    assert option.metadata["topic"] in TOPICS
    assert option.metadata["help"].endswith((".", "]"))
    assert getattr(GuideOptions(**{option.name: option.default}), option.name) == option.default


@pytest.mark.parametrize("option", NUMBERS, ids=named)
def test_numbers_out_of_range_are_refused(option: "dataclasses.Field[Any]") -> None:
    least, most = option.metadata["least"], option.metadata["most"]
    beyond = [math.nan, "many", None]
    if option.metadata["kind"] is int:
        beyond += [least - 1, most + 1, 1.5]
    else:
        beyond += [math.nextafter(least, -math.inf), math.nextafter(most, math.inf), math.inf, -math.inf]
    for value in beyond:
        with pytest.raises(UsageError, match=f"^{option.name} must be") as caught:
            GuideOptions(**{option.name: value})
        assert "\n" not in str(caught.value)
    if option.name not in ("crop_min", "crop_max"):  # which bind each other
        for value in (least, most):
            assert getattr(GuideOptions(**{option.name: value}), option.name) == value


@pytest.mark.parametrize(
    "options",
    [
        {"latent": "solid"}, {"quantise": "yes"}, {"include": 3}, {"include": [3]}, {"init": 4}, {"optimizer": "LBFGS"},
        {"crop_min": 1.5}, {"pan": "3"}, {"pan": "a,b"}, {"pan": "nan,0"}, {"size": "64x"}, {"size": "64x0"},
        {"size": "6.5x8"}, {"max_memory": "lots"}, {"max_memory": "2XB"}, {"seamless": 1}, {"schedule": None},
    ],
    ids=str,
)  # fmt: skip
def test_other_kinds_are_checked(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"^{name} must be") as caught:
        GuideOptions(**options)
    assert "\n" not in str(caught.value)


def test_the_notebooks_values() -> None:
    o = guide_options({}, "notebook")
    assert (o.learning_rate, o.wd, o.noise, o.optimizer) == (0.5, 0.15, 0.22, "AdamW")
    assert (o.w1, o.w2, o.alpha, o.beta, o.distance) == (1.0, 0.1, 1.0, 0.5, "cosine")
    assert (o.cutouts, o.crop_mean, o.crop_std, o.crop_min, o.crop_max) == (32, 1.2, 0.3, 0.43, 1.9)
    assert (o.init, o.quantise, o.clamp, o.shared_affine, o.pad, o.beyond) == ("sine", False, False, True, 0.5, "zeros")


def test_presets_hold_options_only() -> None:
    names = {option.name for option in OPTIONS}
    assert all(set(values) <= names for values in PRESETS.values())


def test_what_is_given_comes_before_the_preset_the_pack_and_the_default() -> None:
    pack = {"learning_rate": 0.7, "wd": 0.3, "tv": 2.0, "unknown to us": 1}
    found = guide_options({"learning_rate": 0.9, "noise": None}, "notebook", pack)
    assert (found.learning_rate, found.wd, found.tv, found.noise) == (0.9, 0.15, 2.0, 0.22)
    assert found.ema == GuideOptions().ema
    with pytest.raises(UsageError, match="no option feet, wings"):
        guide_options({"wings": 2, "feet": 4})
    with pytest.raises(UsageError, match="preset must be one of sample, random, notebook, refine, not x"):
        guide_options({}, "x")


def test_options_are_known_by_their_former_names() -> None:
    with pytest.warns(UserWarning, match="^judge is called other_clip now") as said:
        found = guide_options({"judge": "micro:2"}, None, {"judge_weight": 0.5})
    assert len(said) == 1  # of a pack's own options nothing is said
    assert (found.other_clip, found.own_clip_weight) == (("micro:2",), 0.5)


def test_texts_may_come_alone() -> None:
    assert GuideOptions(include="a cat").include == ("a cat",)
    assert GuideOptions(include=["a cat", "a dog"]).include == ("a cat", "a dog")
    assert guide_options({"exclude": ()}).exclude == ()
