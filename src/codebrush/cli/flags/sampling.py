"""The flags that tune how codes are sampled, for every command that draws pictures."""

import functools
import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

TOPIC, FLOW = "Sampling", "Flow"  # headings in the help


def _flag(kind: Any, text: str, topic: str = TOPIC, **settings: Any) -> Any:
    return Annotated[kind | None, typer.Option(help=text, rich_help_panel=topic, **settings)]


class FlowSampler(StrEnum):
    """How a step of the flow is taken."""

    EULER = "euler"
    HEUN = "heun"
    DPM = "dpm"


class Weights(StrEnum):
    """How a code transformer's weights are stored while it draws."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


class Scale(StrEnum):
    """How many times as wide and high."""

    TWICE = "2"
    FOUR_TIMES = "4"


UpscaleOption = Annotated[Scale | None, typer.Option(help="Enlarge the finished pictures this many times.")]
FLAGS = {
    "cfg": _flag(float, "Scale of classifier-free guidance (CFG); 1 is none.  [pack's own]"),
    "temperature": _flag(float, "Sampling temperature; 0 takes the likeliest code each time.  [pack's own]"),
    "top_k": _flag(int, "Sample from the K likeliest codes; 0 is all.  [pack's own]"),
    "top_p": _flag(
        float, "Nucleus sampling: keep the smallest set of codes whose probability adds up to P.  [pack's own]"
    ),
    "min_p": _flag(float, "Drop codes less likely than P times the likeliest one.  [pack's own]"),
    "retouch": _flag(
        int, "Draw the least likely codes again, with all others in view, in so many rounds.  [pack's own]"
    ),
    "rerank": _flag(
        int, "Candidates to draw, of which the scorer (or CLIP) picks the best.  [4 times n; a flow: twice n]"
    ),
}
FLOW_FLAGS = {
    "sampler": _flag(FlowSampler, "How a step is taken; heun computes twice as much.  [dpm]", FLOW),
    "clip_guidance": _flag(
        float, "Let CLIP's gradient bend the flow, by so many standard deviations in all; 0.5 is a start.  [0]", FLOW
    ),
    "cfg_interval": _flag(str, "CFG only from time A to B; 1 is noise.  [0,1]", FLOW, metavar="A,B"),
}
WEIGHTS_HELP = (
    "Bits of the code transformer's weights: fewer are faster on a CPU, int8 differs slightly. A flow multiplies in"
    " bfloat16 where that is faster, or with float32 in float32."
)
WEIGHTS_FLAG = {"weights": _flag(Weights, f"{WEIGHTS_HELP}  [auto]")}
STEPS_FLAG = {"steps": _flag(int, "Steps to the picture, of a flow or a masked code transformer.  [16; 12]", FLOW)}


def sampling_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of FLAGS and FLOW_FLAGS that were given among `values`, as Python takes them.

    Raises:
        UsageError: if the interval is not two numbers.
    """
    given = {name: values.get(name) for name in (*FLAGS, *FLOW_FLAGS)}
    given = {name: str(value) if name == "sampler" else value for name, value in given.items() if value is not None}
    if "cfg_interval" in given:
        from codebrush.generation.options import parse_pair

        given["cfg_interval"] = parse_pair(given["cfg_interval"], "--cfg-interval", ",")
    return given


def with_sampling_flags(before: str, *, steps: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a Typer command so that it also takes FLAGS, WEIGHTS_FLAG, FLOW_FLAGS and, unless it has its own
    `steps`, STEPS_FLAG.

    They are listed `before` one of its own flags. The values are not passed to the function: they are among the
    `params` of its context.
    """
    flags = {**FLAGS, **WEIGHTS_FLAG, **FLOW_FLAGS, **(STEPS_FLAG if steps else {})}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parts = list(inspect.signature(function).parameters.values())
        place = [part.name for part in parts].index(before)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parts[place:place] = [inspect.Parameter(n, kind, default=None, annotation=a) for n, a in flags.items()]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            function(**{name: value for name, value in values.items() if name not in flags})

        command.__signature__ = inspect.Signature(parts)  # pyright: ignore[reportAttributeAccessIssue]
        command.__annotations__ = {part.name: part.annotation for part in parts}
        return command

    return decorate


def stored_weights(values: Mapping[str, Any]) -> str:
    """How the flags ask for a code transformer's weights to be stored, for `Codebrush.from_pretrained`."""
    return str(values.get("weights") or Weights.AUTO)
