"""Writes prompts in the syntax of `codebrush.text.prompts`: with a style in their words, or with what must not show."""

from collections.abc import Iterable
from dataclasses import replace

from codebrush.errors import PromptError
from codebrush.text.prompts import WeightedText, parse_prompt

# Weight of a negative prompt. With cfg 2 it is the same as to draw away from the negative prompt in place of the empty
# one, as Stable Diffusion does: that is the weight 1 / cfg - 1.
NEGATIVE_WEIGHT = -0.5


def with_style(prompt: str, style_text: str) -> str:
    """A prompt whose parts of positive weight are worded as `style_text` says, such as "{prompt}, noto style".

    Raises:
        PromptError: if it is no prompt.
    """
    parts = parse_prompt(prompt).parts
    return _written(
        replace(part, text=style_text.replace("{prompt}", part.text)) if part.weight > 0 else part for part in parts
    )


def without_style(prompt: str, style_text: str) -> str | None:
    """The prompt of which `with_style` makes `prompt`; None if there is none.

    Raises:
        PromptError: if it is no prompt.
    """
    before, _, after = style_text.partition("{prompt}")
    parts = parse_prompt(prompt).parts
    worded = [part.text for part in parts if part.weight > 0]
    if not all(text.startswith(before) and text.endswith(after) for text in worded):
        return None
    plain = [
        replace(part, text=part.text[len(before) : len(part.text) - len(after)]) if part.weight > 0 else part
        for part in parts
    ]
    return _written(plain) if all(part.text.strip() for part in plain) else None


def with_negative(prompt: str, negative_prompt: str) -> str:
    """A prompt that leads away from all parts of another, by `NEGATIVE_WEIGHT` times their weights.

    Raises:
        PromptError: if one of them is no prompt, or the negative one has a stop.
    """
    negative = parse_prompt(negative_prompt).parts
    if any(part.stop is not None for part in negative):
        raise PromptError("a negative prompt has no stops (text:weight:stop): write such a part into the prompt")
    away = [replace(part, weight=NEGATIVE_WEIGHT * part.weight) for part in negative]
    return _written([*parse_prompt(prompt).parts, *away])


def _written(parts: Iterable[WeightedText]) -> str:
    return " | ".join(map(_written_part, parts))


def _written_part(part: WeightedText) -> str:
    text = part.text.replace("\\", "\\\\").replace(":", "\\:").replace("|", "\\|")
    numbers = [] if part.weight == 1 and part.stop is None else [part.weight]
    numbers += [] if part.stop is None else [part.stop]
    return ":".join([text, *(repr(number) for number in numbers)])
