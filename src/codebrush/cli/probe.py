"""`codebrush probe`: labelled pictures in; a linear classifier of a pack's frozen embeddings, and its figures, out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags import given_flags, refuse
from codebrush.cli.output import check_folder, print_json, progress_bar
from codebrush.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from codebrush.data.sources.captioned_images import CaptionedImages
    from codebrush.pipeline import Codebrush


def probe(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder, .parquet, .tar, .csv or .jsonl files, a glob, a hub id.")],
    label: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    split: Annotated[str, typer.Option(help="Learn from the rows of this split.")] = "train",
    val: Annotated[str | None, typer.Option(help="Choose C on this split.  [val; without it, a fifth]")] = None,
    test: Annotated[str | None, typer.Option(help="Measure on this split.  [test, where there is one]")] = None,
    where: Annotated[list[str] | None, typer.Option(help='Take rows, like "style != noto".')] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the pictures.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first rows of each split only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another fifth.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the probe: see codebrush classify --probe.")] = None,
    pack: Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")] = "emoji",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Teach labels to a linear classifier of CLIP's embeddings, by logistic regression. CLIP itself stays as it is.

    The strength C is chosen on the val split; the probe then learns from both, and is measured on the test split.
    """
    start = time.perf_counter()
    if out is not None and (out.suffix != ".safetensors" or out.is_dir()):
        raise UsageError(f"--out must be a file that ends in .safetensors, not {out}")
    if out is not None:
        check_folder(out.absolute().parent)
    from codebrush.data.sources.captioned_images import open_source
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.probe import fit_probe, probe_figures

    named: dict[str, Any] = {"where": [*(where or ()), f"`{label}` is not null"], "captions": [f"{{{label}}}"]}
    named |= {"image_column": image_column, "limit": limit}
    train = open_source(source, split=split, **named)
    held, measured = (_other(source, name, usual, split, named) for name, usual in ((val, "val"), (test, "test")))
    if held is not None:
        reason = f"is for choosing C on a fifth of the rows, but it is chosen on the split {val or 'val'}"
        refuse(given_flags(context), ("seed",), reason)
    brush = Codebrush.from_pretrained(pack)
    skipped: list[dict[str, str]] = []
    features, labels = _embedded(brush, train, label, skipped)
    others = None if held is None else _embedded(brush, held, label, skipped)
    learned = fit_probe(features, labels, others, seed, clip_hash(brush.pack.member("clip")))
    report: dict[str, Any] = {
        "pack": brush.pack.name,
        "source": source,
        "features": f"unit image embeddings of the pack's CLIP, {features.shape[1]} wide",
        "labels": len(learned.labels),
        "pictures": {"train": len(labels), "val": 0 if others is None else len(others[1])},
        "C": learned.strength,
        "C_at_edge": learned.at_edge,
        "temperature": learned.temperature,
        "held_out_top1": {f"{candidate:g}": score for candidate, score in learned.scores.items()},
    }
    if measured is not None:
        report["test"] = probe_figures(learned, *_embedded(brush, measured, label, skipped))
    if out is not None:
        learned.save(out)
        report["path"] = str(out)
    report |= {"skipped": skipped, "seconds": round(time.perf_counter() - start, 3)}
    print_json(report) if json_output else _print(report)


def _other(source: str, split: str | None, usual: str, learned: str, named: dict[str, Any]) -> "CaptionedImages | None":
    """The rows of another split than is learned from; of the usual one, where the user names none and there is one."""
    from codebrush.data.sources.captioned_images import open_source
    from codebrush.errors import DataError

    if split == learned:
        raise UsageError(f"--{usual} is {split}, the split that is learned from: name another")
    if split is None and usual == learned:
        return None
    try:
        return open_source(source, split=split or usual, **named)
    except DataError:
        if split is not None:
            raise
        return None


def _embedded(
    brush: "Codebrush", rows: "CaptionedImages", label: str, skipped: list[dict[str, str]]
) -> "tuple[Tensor, list[str]]":
    """Unit embeddings (N, E) of the readable pictures, and their labels."""
    from codebrush.evaluation.rows import Reading, embed_rows, row_labels

    labels = row_labels(rows, label)
    with progress_bar("embedding") as progress:
        reading = Reading(rows, progress)
        features = embed_rows(brush.clip, reading)
    skipped += reading.skipped
    return features, [str(labels[row]) for row in reading.rows]


def _print(report: dict[str, Any]) -> None:
    pictures, scores = report["pictures"], report["held_out_top1"]
    val = f" and {pictures['val']:,} of val" if pictures["val"] else ""
    print(f"{report['labels']} labels, from {pictures['train']:,} pictures{val}")
    if scores:
        where = "val" if val else "a fifth of each label"
        print(f"C is {report['C']:g}, chosen on {where}, of which {max(scores.values()):.1%} are told rightly")
    else:
        print(f"C is {report['C']:g} without a choice: no label has two pictures, so none could be held out")
    if report["C_at_edge"]:
        tried = [float(candidate) for candidate in scores]
        side = "least" if report["C"] == min(tried) else "largest"
        print(f"that is the {side} C of those tried, {min(tried):g} to {max(tried):g}: one beyond might do better")
    if "test" in report:
        test = report["test"]
        print(f"test, {test['pictures']:,} pictures: top-1 {test['top1']:.1%}, top-5 {test['top5']:.1%}", end="")
        print(f", mean of the labels' own top-1 {test['mean_per_class']:.1%}")
    if report["skipped"]:
        print(f"{len(report['skipped']):,} pictures could not be read, {report['skipped'][0]['path']} first")
    if "path" in report:
        print(f"the probe is {report['path']}: codebrush classify IMAGE... --probe {report['path']}")
    else:
        print("the probe was not saved: give --out FILE.safetensors to keep it")
