"""Flags that many commands share, and the check that no flag was given which has no effect."""

import shlex
from collections.abc import Container
from enum import StrEnum
from typing import Annotated

import typer

from codebrush.errors import UsageError

PACK_HELP = "Model pack: a built-in or downloaded name, a folder, or a Hugging Face hub id."
PackOption = Annotated[str, typer.Option(help=PACK_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

StyleOption = Annotated[
    str | None, typer.Option(help="Style to draw in; one of the pack's, which codebrush packs show PACK lists.")
]
NegativeOption = Annotated[str | None, typer.Option(help="What the picture should not show.")]

EVERYTHING = "help-all"  # key of a context whose help is to show all options


def _print_all_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[EVERYTHING] = True
        print(context.get_help())
        raise typer.Exit()


HelpAllOption = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=_print_all_help, help="Show all options and exit.")
]


class FitName(StrEnum):
    """How a picture is fitted to the square that the CLIP reads; see `codebrush.data.picture_fitting`."""

    CROP = "crop"
    PAD = "pad"
    SQUEEZE = "squeeze"
    TILES = "tiles"


FIT_HELP = (
    "What is read of a picture that is not square: its middle (crop), all of it between bars (pad) or distorted "
    "(squeeze), or several crops from end to end (tiles).  [as the CLIP was trained: crop; SigLIP: squeeze]"
)
FitOption = Annotated[FitName | None, typer.Option(help=FIT_HELP)]


def given_flags(context: typer.Context) -> dict[str, str]:
    """The parameters that the user gave: name -> how it is written, such as "--seed", or "a prompt" for an argument."""
    given = {}
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not None and source.name != "DEFAULT":
            given[param.name] = param.opts[0] if param.param_type_name == "option" else f"a {param.name}"
    return given


def same_command(context: typer.Context, *more: str) -> str:
    """The command line that was given, as a shell reads it, with `more` flags behind it that it did not have."""
    words, given = context.command_path.split(), given_flags(context)
    for param in context.command.params:
        value = context.params.get(param.name or "")
        if param.name not in given or param.opts[0] in more:
            continue
        flag = [param.opts[0]] if param.param_type_name == "option" else []
        for each in value if isinstance(value, list | tuple) else [value]:
            words += flag if each is True else [*flag, str(each)]
    return shlex.join([*words, *more])


def refuse(given: dict[str, str], unwanted: Container[str], reason: str) -> None:
    """Raise UsageError, "FLAG reason", for the first of the `given` flags whose name is `unwanted`."""
    for name, flag in given.items():
        if name in unwanted:
            raise UsageError(f"{flag} {reason}")
