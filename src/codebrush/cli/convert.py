"""`codebrush convert`: convert published weights to our layout, or a CLIP or flow of ours to a published layout."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, given_flags, refuse
from codebrush.cli.output.printing import check_folder, print_json


class Layout(StrEnum):
    """The layouts in which weights can be written."""

    CODEBRUSH = "codebrush"
    OPENAI = "openai"
    HUGGINGFACE = "huggingface"
    DIFFUSERS = "diffusers"


class Kind(StrEnum):
    """The kind of model to read."""

    CLIP = "clip"
    VQGAN = "vqgan"
    TRANSFORMER = "transformer"


def convert(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Checkpoint file, or a folder with one; with --to also a pack.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new.")],
    to: Annotated[
        Layout, typer.Option(help="Layout to write; openai and huggingface: a CLIP; diffusers: the flow of a pack.")
    ] = (Layout.CODEBRUSH),
    config: Annotated[
        Path | None,
        typer.Option(help="Config that the checkpoint was published with, YAML or JSON.  [the one beside it]"),
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="Which model to read, if the checkpoint holds several.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="File or folder with the tokenizer of a CLIP.  [beside the weights]")
    ] = None,
    text_tower: Annotated[
        Path | None,
        typer.Option(help="Folder of a multilingual text encoder (M-CLIP) to use instead of the CLIP's own."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Convert published weights for use here, or a CLIP or flow back.

    Published CLIPs, VQGANs and code transformers become ours; --to writes a CLIP or a flow for other programs. Known
    layouts are CLIPs of OpenAI, open_clip and Hugging Face, SigLIP, taming-transformers and LlamaGen; the layout is
    recognised by the names of the tensors. Only tensors are read from the file; no code in it is run.
    """
    start = time.perf_counter()
    check_folder(out.absolute().parent)
    from codebrush.pack.pack import PACK_FILE, clip_folder, local_pack, open_pack

    if to is Layout.DIFFUSERS:
        unused = ("config", "kind", "tokenizer", "text_tower")
        refuse(given_flags(context), unused, "is of no use with --to diffusers, which reads a pack: leave it out")
        from codebrush.generation.diffusers.export import to_diffusers

        return _print(to_diffusers(open_pack(source), out), start, json_output)
    from codebrush.conversion.convert import convert as convert_weights

    place = local_pack(source)
    if to is not Layout.CODEBRUSH and place is not None and (place / PACK_FILE).is_file():
        place = clip_folder(source)
    asked = None if kind is None else kind.value
    report = convert_weights(
        place or source, out, config, to=to.value, kind=asked, tokenizer=tokenizer, text_tower=text_tower
    )
    return _print(report, start, json_output)


def _print(report: dict[str, Any], start: float, json_output: bool) -> None:
    report["seconds"] = round(time.perf_counter() - start, 3)
    if json_output:
        print_json(report)
        return
    print(f"{report['out']}: a {report['kind']} of {report['parameters']:,} parameters, read as {report['layout']}")
    from codebrush.hub.download import size_text

    files = ", ".join(f"{name} ({size_text(size)})" for name, size in report["files"].items())
    print(f"written as {report['written']}: {files}")
