"""Lines that the command line would say, for callers who have fields in place of its flags."""

import re
from collections.abc import Callable
from dataclasses import fields

from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.options import SAMPLING

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*)(?![\w.-])")
# Other flags that messages name; not those that prompts from elsewhere have, which stay as they were written.
OTHERS = ("method", "budget", "image_size", "upscale", "strength", "mask", "box", "extend")
KNOWN = {*SAMPLING, *OTHERS, *(option.name for option in fields(GuideOptions))}


def with_fields(text: str, label: Callable[[str], str] = str) -> str:
    """A line in which flags are called as the fields of their names are: `label` says how. One with a command in it,
    which is meant for a terminal, stays as it is."""

    def named(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        return label(name) if name in KNOWN else flag[0]

    return text if "codebrush " in text else FLAG.sub(named, text)
