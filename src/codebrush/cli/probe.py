"""`codebrush probe`: train and measure a linear probe, a classifier on the frozen image embeddings of a pack's CLIP."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, PackOption, given_flags, refuse
from codebrush.cli.flags.sources import (
    ExcludeOption,
    ImageColumnOption,
    LabelledArgument,
    MaxPixelsOption,
    StrictOption,
    WhereOption,
)
from codebrush.cli.output.printing import check_folder, print_json, progress_bar
from codebrush.data.sources.filters import Clause
from codebrush.data.sources.unread import amount
from codebrush.errors import DataError, UsageError
from codebrush.optional import require

if TYPE_CHECKING:
    from torch import Tensor

    from codebrush.data.sources.captioned_images import CaptionedImages
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.probe import LinearProbe


LabelOption = Annotated[
    str,
    typer.Option(
        help='Column with the labels, or a template of columns like "{colour} {shape}", or of captions like '
        '"a photo of a {label}".'
    ),
]


def probe(
    context: typer.Context,
    source: LabelledArgument,
    label: LabelOption = "label",
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    val: Annotated[
        str | None,
        typer.Option(help="Split to choose C on.  [val if it exists, else a fifth of each label]"),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Split to measure accuracy on.  [test, if it exists]")] = None,
    where: WhereOption = None,
    image_column: ImageColumnOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows of each split.")] = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the fifth held out without a val split.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="File for the probe (.safetensors), for codebrush classify --probe.")
    ] = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Train a linear probe, a classifier on CLIP's embeddings.

    It is a logistic regression on the frozen image embeddings that predicts your labels. The regularisation C is chosen
    on the val split. The final probe is trained on both splits and measured on test.
    """
    start = time.perf_counter()
    _check_out(out)
    require("sklearn", "a probe needs")  # before a pack is loaded
    from codebrush.data.sources.captioned_images import open_source
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.probe import fit_probe, probe_figures

    named = _rows_with(label, where or ())
    named |= {"image_column": image_column, "limit": limit, "exclude": exclude or (), "strict": strict}
    train = open_source(source, split=split, **named)
    held, measured = (_other_split(source, name, usual, split, named) for name, usual in ((val, "val"), (test, "test")))
    if held is not None:
        _refuse_seed(context, val or "val")
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
        **_choice(learned),
    }
    if measured is not None:
        report["test"] = probe_figures(learned, *_embedded(brush, measured, label, skipped))
    report |= _saved(learned, out) | {"skipped": skipped, "unread": train.unread.report}
    report["seconds"] = round(time.perf_counter() - start, 3)
    print_json(report) if json_output else _print(report)


def _rows_with(label: str, where: Sequence[str]) -> dict[str, Any]:
    """What opens the rows that have a label: a template may take it from the captions, so that all are opened."""
    if "{" in label:
        return {"where": where, "require_captions": False}
    labelled = Clause(f"--label {label}", label, "is not null")
    return {"where": [*where, labelled], "captions": [f"{{{label}}}"]}


def _refuse_seed(context: typer.Context, split: str) -> None:
    reason = f"only matters if C is chosen on a fifth of the rows, but it is chosen on the split {split}"
    refuse(given_flags(context), ("seed",), reason)


def _choice(learned: "LinearProbe") -> dict[str, Any]:
    """Which regularisation was chosen, and the held-out accuracy of each candidate."""
    return {
        "C": learned.strength,
        "C_at_edge": learned.at_edge,
        "temperature": learned.temperature,
        "held_out_top1": {f"{candidate:g}": score for candidate, score in learned.scores.items()},
    }


def _saved(learned: "LinearProbe", out: Path | None) -> dict[str, str]:
    """Write the probe to `out`, if there is one, and say where it is."""
    if out is None:
        return {}
    learned.save(out)
    return {"path": str(out)}


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.suffix != ".safetensors" or out.is_dir():
        raise UsageError(f"--out must be a file that ends in .safetensors, not {out}")
    check_folder(out.absolute().parent)


def _other_split(
    source: str, split: str | None, usual: str, trained: str, named: dict[str, Any]
) -> "CaptionedImages | None":
    """The rows of `split`; if that is None, those of the `usual` split, or None if there is no such split.

    Raises UsageError if it is the split that is trained on, DataError if the named split is missing.
    """
    from codebrush.data.sources.captioned_images import open_source

    if split == trained:
        raise UsageError(f"--{usual} is {split}, the split that the probe is trained on: name another")
    if split is None and usual == trained:
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
    """Unit embeddings (N, E) of the readable pictures and their labels; the others are added to `skipped`."""
    from codebrush.evaluation.rows import Reading, embed_rows, row_labels

    labels = row_labels(rows, label)
    with progress_bar("embedding") as progress:
        reading = Reading(rows, progress)
        features = embed_rows(brush.clip, reading)
    skipped += reading.skipped
    places = [place for place, row in enumerate(reading.rows) if labels[row] is not None]
    if len(places) < len(reading.rows):
        print(
            f"codebrush: {amount('picture', len(reading.rows) - len(places))} without a label left out", file=sys.stderr
        )
    return features[places], [str(labels[reading.rows[place]]) for place in places]


def _print(report: dict[str, Any]) -> None:
    pictures, scores = report["pictures"], report["held_out_top1"]
    val = f" and {pictures['val']:,} of val" if pictures["val"] else ""
    print(f"{amount('label', report['labels'])}, trained on {amount('picture', pictures['train'])}{val}")
    if scores:
        where = "val" if val else "a fifth of each label"
        print(f"C = {report['C']:g}, chosen on {where}: {max(scores.values()):.1%} top-1 there")
    else:
        print(f"C = {report['C']:g}, by default: no label has two pictures, so none could be held out to choose it")
    if report["C_at_edge"]:
        tried = [float(candidate) for candidate in scores]
        side = "smallest" if report["C"] == min(tried) else "largest"
        print(f"that is the {side} C tried, of {min(tried):g} to {max(tried):g}: one beyond might be better")
    if "test" in report:
        test = report["test"]
        print(
            f"test, {amount('picture', test['pictures'])}: top-1 {test['top1']:.1%}, top-5 {test['top5']:.1%}", end=""
        )
        print(f", mean top-1 per label {test['mean_per_class']:.1%}")
    if report["skipped"]:
        skipped = amount("picture", len(report["skipped"]))
        print(f"{skipped} could not be read; the first is {report['skipped'][0]['path']}")
    if "path" in report:
        again = f"codebrush classify IMAGE... --probe {shlex.quote(report['path'])}"
        print(f"probe saved to {report['path']}; use it with {again}")
    else:
        print("the probe was not saved: give --out FILE.safetensors to keep it")
