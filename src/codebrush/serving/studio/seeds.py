"""The seed in a form: a text, as a number of a browser has 53 bits alone and a seed 63."""

import secrets
from typing import Any

import gradio as gr

from codebrush.errors import UsageError
from codebrush.generation.options import LIMITS, checked_option

LARGEST_DRAWN = 2**31 - 1  # of the seeds that are drawn at random


def seed_fields(own: dict[str, Any]) -> None:
    """Add the fields `seed` and `random` to those of a form."""
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
