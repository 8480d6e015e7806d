"""Fields that the forms of pictures share, and what lists of choices hold."""

import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr

from codebrush.errors import UsageError
from codebrush.generation.options import DEFAULTS, FLOW_SAMPLERS, LIMITS, checked_option
from codebrush.pack.pack import Pack

FLOW_FIELDS = ("sampler", "cfg_interval", "clip_guidance")
USUAL = ""  # in a list: not given
LARGEST_DRAWN = 2**31 - 1  # of the seeds that are drawn at random


def seed_fields(own: dict[str, Any]) -> None:
    """Add the fields `seed` and `random` to those of a form. The seed is a text: it has 63 bits, a number of a
    browser 53."""
    with gr.Row(equal_height=True):
        own["seed"] = gr.Textbox("0", label="Seed", max_lines=1, min_width=120)
        own["random"] = gr.Checkbox(True, label="Random seed", min_width=120)


def seed_of(random: bool, text: str | None) -> int:
    """The seed that a form asks for: a random one if it says so, if there is none, or if it is -1, as elsewhere.

    Raises:
        UsageError: if it is no seed.
    """
    text = str(text or "").strip()
    if random or text in ("", "-1"):
        return secrets.randbelow(LARGEST_DRAWN)
    try:
        seed = int(text)
    except ValueError:
        raise UsageError(f"seed must be {LIMITS['seed'][3]}, not {text}") from None
    return checked_option("seed", seed)


def styles_of(pack: Pack) -> list[tuple[str, str]]:
    """The styles of a pack, as choices."""
    return [("any", USUAL), *((style, style) for style in pack.styles[1])]


def usual_sampling(pack: Pack) -> dict[str, str]:
    """What the options of sampling are unless they are given."""
    usual = {**DEFAULTS, **pack.info.get("defaults", {})}
    return {name: f"{usual[name]:g}" for name in DEFAULTS}


def upscale_field(visible: bool) -> Any:
    """How many times the pictures are enlarged afterwards."""
    return gr.Dropdown(
        [("no", 1), ("2x", 2), ("4x", 4)], value=1, label="Upscale", min_width=140, visible=visible,
        info="Enlarge the pictures afterwards.",
    )  # fmt: skip


def flow_fields(own: dict[str, Any], visible: bool) -> None:
    """Add the fields of FLOW_FIELDS, for a flow alone, to those of a form."""
    own["sampler"] = choice_field("sampler", "flow: how a step is taken.", FLOW_SAMPLERS)
    about = {
        "cfg_interval": ("flow: CFG only between two times; 1 is noise.", "0,1"),
        "clip_guidance": ("flow: CLIP bends it by so many deviations; 0.5 is a start.", "none"),
    }
    for name, (info, usual) in about.items():
        own[name] = gr.Textbox(label=label_of(name), info=info, placeholder=usual, max_lines=1, min_width=140)
    for name in FLOW_FIELDS:
        own[name].visible = visible


def choice_field(name: str, about: str, choices: Any) -> Any:
    """A list of choices, of which none has to be made."""
    offered = [("usual", USUAL), *(each if isinstance(each, tuple) else (each, each) for each in choices)]
    return gr.Dropdown(offered, value=USUAL, label=label_of(name), info=about, min_width=140)


def label_of(name: str) -> str:
    """What a field is called on the page."""
    known = {"cfg": "CFG", "cfg_interval": "CFG interval", "clip_guidance": "CLIP guidance", "n": "Pictures"}
    return known.get(name, name.replace("_", " ").capitalize())


def first_of(choices: Sequence[Any]) -> Any:
    """The value of the first of some choices; None if there are none."""
    return next(iter(values_of(choices)), None)


def values_of(choices: Sequence[Any]) -> list[Any]:
    """The values of some choices."""
    return [each[1] if isinstance(each, tuple) else each for each in choices]
