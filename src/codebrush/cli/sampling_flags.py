"""The flags that say how codes are drawn, one place for every command that draws them."""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

TOPIC = "Sampling"  # of the help


def _flag(kind: Any, text: str) -> Any:
    return Annotated[kind | None, typer.Option(help=text, rich_help_panel=TOPIC)]


class Scale(StrEnum):
    """How many times as large."""

    TWICE = "2"
    FOUR_TIMES = "4"


UpscaleOption = Annotated[Scale | None, typer.Option(help="Enlarge the pictures; CLIP scores what was drawn.")]
FLAGS = {
    "cfg": _flag(float, "Strength of guidance; 1 is none.  [pack's own]"),
    "temperature": _flag(float, "0 is the likeliest code.  [pack's own]"),
    "top_k": _flag(int, "Draw among so many codes; 0 is all.  [pack's own]"),
    "top_p": _flag(float, "Draw among this much of the mass.  [pack's own]"),
    "min_p": _flag(float, "Least share of the likeliest.  [pack's own]"),
    "rerank": _flag(int, "Candidates to draw and score.  [4 times n]"),
}


def with_sampling_flags(before: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A function as a command of typer that also takes FLAGS, `before` one of its own; their values are among the
    params of its context."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parts = list(inspect.signature(function).parameters.values())
        place = [part.name for part in parts].index(before)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parts[place:place] = [inspect.Parameter(n, kind, default=None, annotation=a) for n, a in FLAGS.items()]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            function(**{name: value for name, value in values.items() if name not in FLAGS})

        command.__signature__ = inspect.Signature(parts)  # pyright: ignore[reportAttributeAccessIssue]
        command.__annotations__ = {part.name: part.annotation for part in parts}
        return command

    return decorate
