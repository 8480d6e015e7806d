"""`codebrush train`: a whole pack from captioned pictures, or one stage from a recipe."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

STAGES = ("clip", "vqgan", "transformer")


def train(
    target: Annotated[str, typer.Argument(help="Captioned pictures, or a stage: clip, vqgan, transformer.")],
    recipe: Annotated[str | None, typer.Argument(help="With a stage: its YAML recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="The pack's folder; with a stage, the run's folder.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for everything: 90s, 60m, 2h. Default 60m.")] = None,
    recipes: Annotated[Path | None, typer.Option(help="A folder with clip.yaml, vqgan.yaml, transformer.yaml.")] = None,
    source: Annotated[str | None, typer.Option(help="With a stage: the pictures, instead of the recipe's.")] = None,
    start: Annotated[Path | None, typer.Option("--from", help="A pack or model folder to start from.")] = None,
    clip: Annotated[Path | None, typer.Option(help="With a stage: the trained CLIP it needs.")] = None,
    vqgan: Annotated[Path | None, typer.Option(help="With a stage: the trained VQGAN it needs.")] = None,
    caption: Annotated[list[str] | None, typer.Option(help='Caption template, like "{label}, {style} style".')] = None,
    split: Annotated[str | None, typer.Option(help="Train on the rows of this split.")] = None,
    where: Annotated[list[str] | None, typer.Option(help='Keep rows, like "style != noto".')] = None,
    group: Annotated[str | None, typer.Option(help="Column whose equal values mean the same thing.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the pictures.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first rows only.")] = None,
    image_size: Annotated[int, typer.Option(min=16, max=1024, help="Side of the pictures in pixels.")] = 64,
    tokenizer: Annotated[str, typer.Option(help="wordpiece (knows English) or bpe (from the captions).")] = "wordpiece",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
    name: Annotated[str, typer.Option(help="The pack's name; by default its folder's.")] = "",
    licence: Annotated[str, typer.Option(help="What the pack may be used for.")] = "unspecified",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in --out stopped.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Train a pack from captioned pictures, or one stage from a recipe."""
    from codebrush.errors import UsageError

    if out is None:
        raise UsageError("--out is missing: name the folder to train into")
    shared: dict[str, Any] = {"start": start, "threads": threads, "resume": resume, "tokenizer": tokenizer}
    if target in STAGES:
        if recipe is None:
            raise UsageError(f"train {target} needs a recipe: codebrush train {target} RECIPE.yaml --out {out}")
        report = _train_stage(target, recipe, out, source=source, clip=clip, vqgan=vqgan, **shared)
    else:
        if recipe is not None:
            raise UsageError(f"'{target}' is no stage ({', '.join(STAGES)}): give a recipe folder as --recipes")
        if budget is None and recipes is None:
            budget = "60m"
        rows = (target, split, tuple(where or ()), tuple(caption or ()), group, image_column, limit)
        shared |= {"image_size": image_size, "seed": seed, "name": name, "licence": licence}
        report = _train_pack(rows, out, budget, recipes, shared)
    _print(report, json_output)


def _train_stage(stage: str, recipe: str, out: Path, **options: Any) -> dict[str, Any]:
    from codebrush.previews import draw_preview
    from codebrush.training.single_stage import train_stage

    return train_stage(stage, recipe, out, draw=draw_preview, **options)


def _train_pack(
    rows: tuple[Any, ...], out: Path, budget: str | None, recipes: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    from codebrush.training.budget import parse_budget

    seconds = None if budget is None else parse_budget(budget)  # before the heavy imports, to be told at once

    from codebrush.previews import draw_preview
    from codebrush.training.captioned import SourceConfig
    from codebrush.training.pack_training import PackRequest, read_recipes, train_pack

    source, plans = SourceConfig(*rows), {}
    if recipes is not None:
        source, plans = read_recipes(recipes, source)
    request = PackRequest(source, out, seconds, plans, **options)
    return train_pack(request, lambda text: print(text, file=sys.stderr), draw_preview)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    for stage, figures in report["stages"].items():
        print(f"{stage}: {figures['steps']} steps, {figures['parameters']:,} parameters, {figures['seconds']} s")
    print(f"{report.get('pack') or report['model']} is ready after {report['seconds']} s")
    if "pack" in report:
        print(f'try it: codebrush generate "..." --pack {report["pack"]}')
