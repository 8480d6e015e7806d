"""`codebrush packs list`, `show` and `download`: packs and published models."""

import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption
from codebrush.cli.output.printing import print_json, print_table, progress_bar

packs = typer.Typer(
    help="List, describe and download model packs and published models.", rich_markup_mode=None, add_completion=False
)

LICENCE_COLUMNS = 36  # with the others 100
NameArgument = Annotated[str, typer.Argument(help="A pack or model in the output of `codebrush packs list`.")]
HomeOption = Annotated[
    Path | None, typer.Option(help="Folder of the downloaded packs.  [$CODEBRUSH_HOME, or ~/.cache/codebrush]")
]


@packs.command("list")
def list_packs(home: HomeOption = None, json_output: JsonOption = False) -> None:
    """List the packs and published models that are built in, installed or available for download."""
    from codebrush.hub.listing import rows
    from codebrush.pack.pack import home as usual_home

    place = home or usual_home()
    found = rows(place)
    if json_output:
        print_json({"home": str(place), "packs": found})
    else:
        _print_rows(found)


@packs.command()
def show(
    name: Annotated[str, typer.Argument(help="A pack or model in the output of `codebrush packs list`, or a folder.")],
    home: HomeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show all that is known about one pack or model: licence, styles, paper, files with mirrors, and its folder."""
    from codebrush.hub.listing import facts
    from codebrush.pack.pack import home as usual_home

    found = facts(name, home or usual_home())
    if json_output:
        print_json(found)
    else:
        _print_facts(found)


@packs.command()
def download(
    name: NameArgument,
    home: HomeOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the downloaded files after converting them.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Download a pack or model, verify and convert it. A pack can then be used with --pack NAME."""
    start = time.perf_counter()
    from codebrush.hub.catalogue import load_catalogue
    from codebrush.hub.install import install
    from codebrush.pack.pack import home as usual_home

    with progress_bar("downloading") as progress:
        report = install(name, load_catalogue(), home or usual_home(), progress=progress, say=_say, keep=keep)
    report["seconds"] = round(time.perf_counter() - start, 3)
    if json_output:
        print_json(report)
    else:
        was = "is already" if report["state"] == "ready" else "is now"
        print(f"{name} {was} in {report['path']}")
        print(f"licence: {report['licence']}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print_rows(found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from codebrush.hub.download import size_text

    table = Table("name", "kind", "size", "licence", "state", box=None, header_style="bold")
    for row in found:
        size = size_text(row["size"]) + ("" if row["size_is_whole"] or not row["size"] else " +")
        licence = textwrap.shorten(row["licence"], LICENCE_COLUMNS, placeholder=" …")
        table.add_row(row["name"], row["kind"], size, licence, row["state"])
    print_table(table)


def _print_facts(found: dict[str, Any], indent: str = "") -> None:
    """Print names and values, one a line, with nested values indented."""
    from codebrush.hub.download import size_text

    for name, value in found.items():
        if name == "size_is_whole":
            continue
        if name == "size":
            print(
                f"{indent}{name}: {size_text(value)}{'' if value is None or found.get('size_is_whole', True) else ' +'}"
            )
        elif isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_facts(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            print(f"{indent}{name}:")
            for item in value:
                print(f"{indent}-")
                _print_facts(item, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{name}: {', '.join(str(item) for item in value)}")
        elif value is not None:
            print(f"{indent}{name}: {value}")
