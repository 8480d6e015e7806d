"""`codebrush data shapes` and `codebrush data emoji`: folders of captioned pictures to train on."""

import time
from pathlib import Path
from typing import Annotated

import typer

from codebrush.cli.output import print_json, progress_bar

data = typer.Typer(help="Write captioned pictures to train on.", rich_markup_mode=None, add_completion=False)

OutOption = Annotated[Path, typer.Option(help="The new folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@data.command()
def shapes(
    out: OutOption,
    count: Annotated[int, typer.Option(help="How many scenes.")] = 1000,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    objects: Annotated[int | None, typer.Option(help="Shapes in each scene.  [mixed]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw scenes of coloured shapes with captions that are exactly true."""
    start = time.perf_counter()
    from codebrush.data.shapes import write_shapes

    written = write_shapes(out, count, size=size, seed=seed, objects=objects)
    _report(out, written, start, json_output)


@data.command()
def emoji(
    out: OutOption,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 128,
    font: Annotated[Path | None, typer.Option(help="A colour-emoji font.  [an installed one]")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after so many.  [all]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw the emoji of an installed colour font, with their names and keywords."""
    start = time.perf_counter()
    from codebrush.data.emoji import write_emoji

    with progress_bar("drawing") as progress:
        written = write_emoji(out, size=size, font=font, limit=limit, progress=progress)
    _report(out, written, start, json_output)


def _report(out: Path, written: int, start: float, json_output: bool) -> None:
    report = {"path": str(out), "pictures": written, "seconds": round(time.perf_counter() - start, 3)}
    if json_output:
        print_json(report)
    else:
        print(f"{written} pictures with captions are in {out}")
