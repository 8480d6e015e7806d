"""`codebrush evaluate`: measure the models of a pack on captioned pictures."""

import re
import sys
import time
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.common import PACK_HELP, JsonOption, given_flags, refuse
from codebrush.cli.flags.sources import (
    CaptionOption,
    ExcludeOption,
    ImageColumnOption,
    LimitOption,
    MaxPixelsOption,
    SourceArgument,
    StrictOption,
    WhereOption,
)
from codebrush.cli.output.printing import check_folder, print_json, progress_bar
from codebrush.errors import DataError, UsageError
from codebrush.files import atomic_file
from codebrush.optional import require

if TYPE_CHECKING:
    from PIL import Image

    from codebrush.data.sources.captioned_images import CaptionedImages
    from codebrush.evaluation.report import Judge, Subject
    from codebrush.pipeline import Codebrush

DRAWING = "Drawing"  # a panel of the help
USUAL_SPLIT = "test"


class Part(StrEnum):
    """The parts of an evaluation."""

    ZERO_SHOT = "zero-shot"
    RETRIEVAL = "retrieval"
    CLIP_SCORE = "clip-score"
    RECONSTRUCTION = "reconstruction"
    DRAWING = "drawing"


USED_BY = {  # parts -> the flags that only they use
    frozenset((Part.DRAWING,)): ("prompts", "rerank", "seed"),
    frozenset((Part.ZERO_SHOT,)): ("label", "template"),
    frozenset((Part.RECONSTRUCTION, Part.DRAWING)): ("judge",),
}


def _option(topic: str, text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=topic, **settings)


def evaluate(
    context: typer.Context,
    pack: Annotated[str, typer.Argument(help=PACK_HELP)],
    source: SourceArgument,
    split: Annotated[str | None, typer.Option(help="Split to measure on.  [test; without splits all rows]")] = None,
    where: WhereOption = None,
    caption: CaptionOption = None,
    image_column: ImageColumnOption = None,
    limit: LimitOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    label: Annotated[str | None, typer.Option(help="Column with the true labels.  [label, if it exists]")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='Prompt for zero-shot labels, like "a photo of a {}"; may be repeated.')
    ] = None,
    leave_out: Annotated[list[Part] | None, typer.Option(help="Part not to measure; may be repeated.")] = None,
    prompts: Annotated[int, _option(DRAWING, "Number of captions to draw as prompts.", min=1)] = 50,
    rerank: Annotated[int, _option(DRAWING, "Pictures per prompt; the best by the pack's CLIP counts.", min=1)] = 1,
    seed: Annotated[int, _option(DRAWING, "Random seed of the choice of captions and of the pictures.", min=0)] = 0,
    judge: Annotated[
        str | None,
        typer.Option(help="Pack or folder of the CLIP that scores reconstructed and drawn pictures.  [the pack's own]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the Markdown table.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure the models of a pack on captioned pictures.

    Zero-shot accuracy and retrieval of its CLIP, reconstruction by its VQGAN, and the pictures that it draws. A pack's
    own CLIP favours the pack's pictures: --judge measures them with another CLIP. Prints a Markdown table.
    """
    start = time.perf_counter()
    parts = frozenset(part.value for part in Part if part not in (leave_out or ()))
    _check_parts(context, parts)
    _check_out(out)
    _check_templates(template)
    if Part.RECONSTRUCTION in parts:
        require("torchmetrics", "measuring needs", ", or add --leave-out reconstruction")  # before a pack is loaded
    from codebrush.evaluation.report import EvaluationOptions
    from codebrush.evaluation.report import evaluate as measure
    from codebrush.evaluation.tables import markdown
    from codebrush.pipeline import Codebrush

    named = {"where": where or (), "captions": caption or (), "image_column": image_column, "limit": limit}
    named |= {"exclude": exclude or (), "strict": strict}
    rows, split = _rows(source, split, named)
    brush = Codebrush.from_pretrained(pack)
    subject = _subject(brush, _judge(brush, judge), parts, template, seed)
    with ExitStack() as bars:
        options = EvaluationOptions(parts, label, prompts, rerank, seed)
        found = measure(subject, rows, options, lambda phase: bars.enter_context(progress_bar(phase)))
    seconds = round(time.perf_counter() - start, 3)
    about = {"pack": brush.pack.name, "source": source, "split": split}
    report = {**about, **found, "unread": rows.unread.report, "seconds": seconds}
    table = markdown(report)
    if out is not None:
        with atomic_file(out) as part:
            part.write_text(table, encoding="utf-8")
    print_json(report) if json_output else print(table, end="")


def _check_parts(context: typer.Context, parts: frozenset[str]) -> None:
    """Raise UsageError if nothing is left to measure, or a flag is given that only parts left out use."""
    if not parts:
        raise UsageError("everything is left out by --leave-out: keep at least one part")
    for users, flags in USED_BY.items():
        if not parts & users:
            names = " and ".join(part for part in Part if part in users)
            refuse(given_flags(context), flags, f"is only for {names}, which --leave-out leaves out")


def _check_out(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise UsageError(f"--out must be a file, not the folder {out}")
    if out is not None:
        check_folder(out.absolute().parent)


def _check_templates(templates: list[str] | None) -> None:
    from codebrush.understanding.classification import check_templates

    if templates:
        check_templates(templates)


def _rows(source: str, split: str | None, named: dict[str, Any]) -> "tuple[CaptionedImages, str | None]":
    """The rows to measure on and the name of their split; of a source without splits all rows, and None."""
    from codebrush.data.sources.captioned_images import open_source

    wanted = split or USUAL_SPLIT
    try:
        return open_source(source, split=wanted, **named), wanted
    except DataError:
        rows = open_source(source, **named)  # raises again if something else is wrong
        if "split" in rows.row(0):
            raise
    if split is not None:
        raise DataError(f"{source} has no splits, so there is no {split}: leave out --split to use all its rows")
    print(f"codebrush: {source} has no splits: all its rows are used", file=sys.stderr)
    return rows, None


def _judge(brush: "Codebrush", source: str | None) -> "Judge":
    from codebrush.evaluation.report import Judge
    from codebrush.pack.pack import open_clip

    if source is None:
        return Judge(f"{brush.pack.name}, the pack's own", brush.clip, brush.tokenizer)
    clip, tokenizer = open_clip(source)
    return Judge(source, clip.to(brush.device).requires_grad_(False), tokenizer)


def _subject(
    brush: "Codebrush", judge: "Judge", parts: frozenset[str], templates: list[str] | None, seed: int
) -> "Subject":
    from codebrush.evaluation.report import Subject
    from codebrush.generation.sampling.painters import draws
    from codebrush.text.prompts import ZERO_SHOT_TEMPLATES
    from codebrush.understanding.classification import label_embeddings, pack_temperature

    sentences = templates or ZERO_SHOT_TEMPLATES

    def draw(text: str, n: int) -> "Image.Image":
        literal = re.sub(r"[\\:|]", r"\\\g<0>", text)  # a caption must not be read as a prompt with weights
        return brush.generate(literal, n=1, seed=seed, rerank=n)[0].image

    return Subject(
        brush.clip,
        brush.tokenizer,
        judge,
        lambda labels: label_embeddings(brush.clip, brush.tokenizer, labels, sentences),
        pack_temperature(brush.pack.info),
        brush.pack.image_size,
        brush.vqgan if Part.RECONSTRUCTION in parts else None,
        draw if draws(brush.pack) else None,
    )
