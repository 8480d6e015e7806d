"""Lines that the command line would say, for callers who have fields in place of its flags."""

import re
from collections.abc import Callable
from dataclasses import fields

from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.options import SAMPLING

FLAG = re.compile(r"--([a-z][a-z-]*)")
# Other flags of what the server does; one that a prompt from elsewhere has stays as it was written.
OTHERS = ("method", "budget", "image_size", "seed", "n", "upscale", "strength", "mask", "box", "extend", "by", "to")
KNOWN = {*SAMPLING, *OTHERS, *(option.name for option in fields(GuideOptions))}


def with_fields(text: str, label: Callable[[str], str] = str) -> str:
    """A line in which flags are called as the fields of their names are: `label` says how. One with a command in it,
    which is meant for a terminal, stays as it is."""

    def named(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        return label(name) if name in KNOWN else flag[0]

    return text if "codebrush " in text else FLAG.sub(named, text)
