"""A command line as typer read it in; which flags were given, and a line for one that goes with nothing, out."""

from collections.abc import Container

import typer

from codebrush.errors import UsageError


def given_flags(context: typer.Context) -> dict[str, str]:
    """The parameters that were given, by name, as they are spelt: a flag, or an argument in words."""
    spelt = {}
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not None and source.name != "DEFAULT":
            spelt[param.name] = param.opts[0] if param.param_type_name == "option" else f"a {param.name}"
    return spelt


def refuse(spelt: dict[str, str], unwanted: Container[str], reason: str) -> None:
    """A UsageError with `reason` that names the first unwanted one of the flags that are given."""
    for name, flag in spelt.items():
        if name in unwanted:
            raise UsageError(f"{flag} {reason}")
