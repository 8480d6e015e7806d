"""`codebrush train`: a whole pack on captioned pictures, or one stage by a recipe."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from codebrush.cli.flags.common import JsonOption, given_flags, refuse, same_command
from codebrush.cli.flags.members import refuse_unread, with_member_flags
from codebrush.cli.flags.sources import (
    CaptionOption,
    ExcludeOption,
    ImageColumnOption,
    LimitOption,
    MaxPixelsOption,
    SplitOption,
    StrictOption,
    WhereOption,
)
from codebrush.cli.output.printing import print_json
from codebrush.data.sources.unread import amount
from codebrush.errors import UsageError
from codebrush.training.registry import STAGES, readers

NAMES = ", ".join(STAGES)
FOR_STAGES = ("source", *readers())
FOR_ROWS = ("caption", "split", "where", "group", "image_column", "limit", "exclude", "strict")
FOR_PACKS = (*FOR_ROWS, "budget", "recipes", "image_size", "seed", "name", "licence", "keep_work")
IN_RECIPES = ("budget", "image_size", "seed")
ALWAYS = ("target", "recipe", "out", "resume", "json_output")  # every training takes these


TargetArgument = Annotated[
    str, typer.Argument(help=f"Captioned pictures (folder, table, shards or hub id), or the stage to train: {NAMES}.")
]
StartOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Pack or model to fine-tune: a name or a folder; none begins from nothing.  "
        "[within a budget: emoji; otherwise none]",
    ),
]
ImageSizeOption = Annotated[
    int | None, typer.Option(min=16, max=1024, help="Side of the pack's pictures, in pixels.  [as in --from, or 64]")
]
OnNanOption = Annotated[
    Literal["stop", "skip"] | None,
    typer.Option(
        help="A step with an infinite or NaN loss: stop, or skip it and go on; also with --resume.  "
        "[stop; within a budget: skip]"
    ),
]
KeepWorkOption = Annotated[
    bool, typer.Option("--keep-work", help="Keep checkpoints, previews and TensorBoard logs in OUT.work.")
]


@with_member_flags
def train(
    context: typer.Context,
    target: TargetArgument,
    recipe: Annotated[str | None, typer.Argument(help="YAML file with the settings of the stage.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write: the new pack, or the run of the stage.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for all stages, with a unit: 90s, 60m or 2h.  [60m]")] = None,
    recipes: Annotated[
        Path | None,
        typer.Option(help="Folder with a recipe for each stage (clip.yaml, ...), instead of a budget."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Pictures for the stage, instead of its recipe's.")] = None,
    start: StartOption = None,
    members: dict[str, Path] | None = None,
    caption: CaptionOption = None,
    split: SplitOption = None,
    where: WhereOption = None,
    group: Annotated[str | None, typer.Option(help="Column whose equal values are the same thing.  [captions]")] = None,
    image_column: ImageColumnOption = None,
    limit: LimitOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    image_size: ImageSizeOption = None,
    tokenizer: Annotated[str, typer.Option(help="wordpiece (English) or bpe (learned from captions).")] = "wordpiece",
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves the choice to PyTorch.")] = 0,
    name: Annotated[str, typer.Option(help="The pack's name; by default that of its folder.")] = "",
    licence: Annotated[str, typer.Option(help="The licence written into the pack.")] = "unspecified",
    on_nan: OnNanOption = None,
    keep_work: KeepWorkOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a training that stopped in --out.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Train a pack, or one of its models, on your pictures.

    codebrush train PICTURES --out PACK trains all models of a pack within a time budget, one stage after the other.
    codebrush train STAGE RECIPE --out RUN trains one of them, with the settings in a YAML file.
    """
    if out is None:
        raise UsageError("--out is missing: name the folder to train into")
    spelt = given_flags(context)
    start = None if str(start) == "none" else start
    _check_flags(target, spelt, fresh=start is None)
    given = {name: context.params[name] for name in spelt if name not in ALWAYS}
    if target in STAGES and recipe is None:
        raise UsageError(f"train {target} needs a recipe: codebrush train {target} RECIPE.yaml --out {out}")
    if target not in STAGES and recipe is not None:
        raise UsageError(f"'{target}' is not a stage ({NAMES}): give a recipe folder as --recipes")
    try:
        if recipe is None:
            report = _train_pack(target, out, resume, given, context.obj)
        else:
            options = {"source": source, "given": members, "tokenizer": given.get("tokenizer"), "on_nan": on_nan}
            report = _train_stage(target, recipe, out, start=start, threads=threads, resume=resume, **options)
    except KeyboardInterrupt:
        if _can_go_on(out):
            print(f"to go on: {same_command(context, '--resume')}", file=sys.stderr)
        raise
    if report:  # only the first of several processes has one
        _print(report, json_output)


def _check_flags(target: str, given: dict[str, str], fresh: bool) -> None:
    """Raises UsageError for a given flag that this training would ignore; `fresh` if it begins from nothing."""
    if target in STAGES:
        refuse(given, FOR_PACKS, f"is for a whole pack, not for the stage {target}: its recipe says it")
        refuse_unread(target, given)
        return
    refuse(given, FOR_STAGES, f"is for a single stage ({NAMES}), not for a whole pack")
    if "recipes" in given:
        refuse(given, IN_RECIPES, "does nothing with --recipes: the recipes say it")
    if not fresh:
        refuse(given, ("tokenizer",), "does nothing with --from: the pack there says it")


def _train_stage(stage: str, recipe: str, out: Path, **options: Any) -> dict[str, Any]:
    from codebrush.previews import draw_preview
    from codebrush.training.single_stage import train_stage

    return train_stage(stage, recipe, out, draw=draw_preview, **options)


def _train_pack(source: str, out: Path, resume: bool, given: dict[str, Any], began: float) -> dict[str, Any]:
    from codebrush.training.packs.budget import parse_budget

    if "budget" in given:
        given["budget"] = parse_budget(given["budget"])  # before the heavy imports, so that an error comes at once
    if "caption" in given:
        given["captions"] = given.pop("caption")
    given |= {name: tuple(given[name]) for name in ("captions", "where", "exclude") if name in given}

    from codebrush.previews import draw_preview
    from codebrush.training.packs.pack_training import train_pack
    from codebrush.training.packs.request import make_request

    request = make_request(source, out, given, resume)
    return train_pack(request, lambda text: print(text, file=sys.stderr), draw_preview, began)


def _can_go_on(out: Path) -> bool:
    """Whether --resume finds something in a run folder, or beside a pack."""
    from codebrush.training.packs.places import REQUEST_FILE, work_folder
    from codebrush.training.run_folder import has_begun

    return has_begun(out) or (work_folder(out) / REQUEST_FILE).is_file()


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for stage, figures in report["stages"].items():
        work, size = amount("step", figures["steps"]), amount("parameter", figures["parameters"])
        print(f"{stage}: {work}, {size}, {figures['seconds']} s")
        if "gate" in figures:
            gate = figures["gate"]
            print(
                f"zero-shot top-1 of what must not be forgotten: {gate['before']:.3f} before, {gate['after']:.3f} after"
            )
    print(f"{report.get('pack') or report['model']} is written after {report['seconds']} s")
    if "pack" not in report:
        return
    for stage, reason in report["left_out"].items():
        instead = f"is {report['kept'][stage]}'s as it was" if stage in report["kept"] else "is missing"
        print(f"{stage} was not trained and {instead}: {reason}")
    for line in report["verdict"]:
        print(line)
    print(f"look at {' and '.join(report['sheets'])}")
    if "work" in report:
        print(f"{report['work']} holds checkpoints, previews and TensorBoard logs: delete it if you need none")
    method = "" if report["draws"] else " --method guide"
    print(f'try it: codebrush generate "..." --pack {shlex.quote(report["pack"])}{method}')
