"""Makes one flag for each option of guidance, from the table in `GuideOptions`. Imports nothing heavy."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from codebrush.generation.guided.guide_options import FORMER_NAMES, GuideOptions
from codebrush.generation.guided.option_help import LONGEST_CHOICES, help_of
from codebrush.generation.guided.presets import PRESETS
from codebrush.warned import warn_of_former_name

OPTIONS = dataclasses.fields(GuideOptions)
PRESET_NAMES = "|".join(PRESETS)
NAMES = frozenset(option.name for option in OPTIONS)


def with_guide_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a Typer command so that it also takes one flag for each option of guidance.

    The function gets the given ones as the dict `guidance`; those left out may come from a preset or the pack.
    """
    own = [part for part in inspect.signature(function).parameters.values() if part.name != "guidance"]
    taken = {part.name for part in own} & NAMES
    if taken:
        raise ValueError(f"{function.__name__} has flags of the same name as guidance: {', '.join(sorted(taken))}")

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {name: value for name, value in values.items() if name in NAMES and value is not None}
        for former, present in FORMER_NAMES.items():
            value = values.pop(former)
            if value is not None:
                warn_of_former_name(_flag(former), _flag(present))
                given[present] = value + given.get(present, []) if isinstance(value, list) else value
        function(**{name: value for name, value in values.items() if name not in NAMES}, guidance=given)

    present = {option.name: option for option in OPTIONS}
    former = [_parameter(present[name], earlier) for earlier, name in FORMER_NAMES.items()]
    parameters = [*own, *(_parameter(option) for option in OPTIONS), *former]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {part.name: part.annotation for part in parameters}
    return command


def _parameter(option: "dataclasses.Field[Any]", former: str = "") -> inspect.Parameter:
    """The flag of an option; under a `former` name, which the help does not show, if that is given."""
    kind, name = option.metadata["kind"], former or option.name
    flag, metavar = _flag(name), None
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    elif kind is tuple:
        kind, metavar = list[str], "<text>"
    elif kind is str:
        choices = "|".join(option.metadata.get("choices", ()))
        metavar = f"<{choices}>" if 0 < len(choices) <= LONGEST_CHOICES else "<text>"
    topic = f"Guidance: {option.metadata['topic']}"
    about = typer.Option(flag, metavar=metavar, help=help_of(option), rich_help_panel=topic, hidden=bool(former))
    annotation = Annotated[kind | None, about]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
