"""`codebrush convert`: published weights to a folder of ours, or a CLIP of ours to a published layout."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from codebrush.cli.output import check_folder, print_json


class Layout(StrEnum):
    """How weights can be written."""

    CODEBRUSH = "codebrush"
    OPENAI = "openai"
    HUGGINGFACE = "huggingface"


class Kind(StrEnum):
    """What a checkpoint of several models is read as."""

    CLIP = "clip"
    VQGAN = "vqgan"
    TRANSFORMER = "transformer"


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint, or a folder with one; to write a CLIP, also a pack.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    to: Annotated[Layout, typer.Option(help="The layout to write; openai and huggingface are for CLIPs.")] = (
        Layout.CODEBRUSH
    ),
    config: Annotated[Path | None, typer.Option(help="The checkpoint's own config, YAML or JSON.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Which model of a checkpoint that holds several.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A CLIP's vocabulary, file or folder.  [beside the weights]")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Convert published weights (CLIP, VQGAN, code transformer) for use here, or a CLIP of ours for use elsewhere.

    The checkpoint's layout is told by its tensors: OpenAI, open_clip and Hugging Face CLIPs, SigLIP, Taming and
    LlamaGen are known. It is read as tensors alone; nothing in it is run.
    """
    start = time.perf_counter()
    check_folder(out.absolute().parent)
    from codebrush.conversion.convert import convert as convert_weights
    from codebrush.pack.pack import PACK_FILE, clip_folder, local_pack

    place = local_pack(source)
    if to is not Layout.CODEBRUSH and place is not None and (place / PACK_FILE).is_file():
        place = clip_folder(source)
    asked = None if kind is None else kind.value
    report = convert_weights(place or source, out, config, to=to.value, kind=asked, tokenizer=tokenizer)
    report["seconds"] = round(time.perf_counter() - start, 3)
    if json_output:
        print_json(report)
        return
    print(f"{report['out']}: a {report['kind']} of {report['parameters']:,} parameters, read as {report['layout']}")
    if report["written"] == "codebrush" and report["kind"] == "clip" and not report["tokenizer"]:
        print("it has no tokenizer yet, so it cannot read texts", file=sys.stderr)
