"""`codebrush blend`: the weighted mean of the weights of two models of one kind."""

import time
from pathlib import Path
from typing import Annotated

import typer

from codebrush.cli.flags.common import JsonOption
from codebrush.cli.output.printing import check_folder, print_json


def blend(
    a: Annotated[str, typer.Argument(help="A pack, training run or model folder, such as the start of a fine-tuning.")],
    b: Annotated[
        str, typer.Argument(help="Another of the same kind and sizes, such as the result of that fine-tuning.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new.")],
    alpha: Annotated[float, typer.Option(help="Share of B: 0 is A, 1 is B.")] = 0.5,
    json_output: JsonOption = False,
) -> None:
    """Blend two CLIPs, or two other models of one kind.

    The weights become (1 - alpha) A + alpha B, which is often better than both.
    """
    start = time.perf_counter()
    check_folder(out.absolute().parent)
    from codebrush.training.blending import blend_folders

    report = blend_folders(a, b, alpha, out)
    report["seconds"] = round(time.perf_counter() - start, 3)
    if json_output:
        print_json(report)
    else:
        print(f"{report['model']} is {1 - alpha:g} of {a} and {alpha:g} of {b}")
