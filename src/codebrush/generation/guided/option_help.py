"""The help text of each option of guidance, for the command line and the page alike."""

import dataclasses
from typing import Any

from codebrush.generation.guided.presets import PRESETS
from codebrush.generation.options import FLOW_OPTIONS, FlowSettings

LONGEST_CHOICES = 30  # characters; longer lists of choices go into the help text


def help_of(option: "dataclasses.Field[Any]") -> str:
    """The help text of an option, with its default, and its choices if they are too long to stand beside the flag."""
    text, choices = option.metadata["help"], option.metadata.get("choices", ())
    if len("|".join(choices)) > LONGEST_CHOICES:
        text = f"{text.rstrip('.')}: {', '.join(choices)}."
    usual = usual_value(option)
    if option.name in FLOW_OPTIONS:  # generate has it for both
        usual = f"guide: {usual.replace(';', ',')}; flow: {shown_value(getattr(FlowSettings, option.name))}"
    return f"{text}  [{usual}]" if usual else text


def usual_value(option: "dataclasses.Field[Any]") -> str:
    """What an option is unless it is given, from a drawn start and from noise; "" if that is nothing."""
    default = option.default
    if default is None or default == ():
        return ""
    sampled, noise = PRESETS["sample"].get(option.name, default), PRESETS["random"].get(option.name, default)
    return shown_value(sampled) if sampled == noise else f"{shown_value(sampled)}; from noise {shown_value(noise)}"


def shown_value(value: Any) -> str:
    """The value of an option as the help shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else format(value, "g")
