"""Writes what a curation did: report.json, report.md, dropped.jsonl and two contact sheets."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.curation.measures import BYTES_PER_ROW, KEPT, REASONS, Measures, good_captions
from codebrush.data.curation.options import CurationOptions
from codebrush.data.curation.phrases import SPLITS, Phrases
from codebrush.data.decoding.images import decode_image, save_png
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.data.sources.shard_writer import ShardWriter
from codebrush.data.sources.unread import amount
from codebrush.errors import ImageError

KEPT_EXAMPLES = 36
EXAMPLES = 6  # of each reason
COMMON = 20  # phrases listed
SIDE = 112  # of a picture on a sheet, in pixels
FLAGS = {"kind": "--format", "by_group": "--group"}  # of options that have another name on the command line


def write_report(
    folder: Path,
    out: Path,
    source: CaptionedImages,
    measures: Measures,
    options: CurationOptions,
    writer: ShardWriter,
    phrases: Phrases | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write the report of the shards in `folder`, which will be renamed to `out`, and return it."""
    counts = measures.counts()
    report: dict[str, Any] = {
        "path": str(out),
        "source": source.origin,
        "rows": len(measures),
        "kept": counts.pop("kept", 0),
        "dropped": counts,
        "plain": measures.plain,
        "splits": {
            name: writer.counts.get(name, 0) for name, share in zip(SPLITS, options.shares, strict=True) if share
        },
        "shards": writer.shards,
        "format": options.kind,
        "options": asdict(options) | {"phrases": None if options.phrases is None else len(options.phrases)},
        "scores": _scores(measures),
        "bytes_per_row": BYTES_PER_ROW + (0 if options.near is None else 4 * (options.near + 1)),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    if phrases is not None:
        after = Phrases(options.phrases)
        for row in measures.kept.tolist():
            after.count(good_captions(source, row, options.rules))
        report["phrases"] = [
            {"phrase": phrase, "before": before, "after": after.counts[phrase]}
            for phrase, before in phrases.commonest(COMMON)
        ]
    _write_dropped(folder / "dropped.jsonl", source, measures)
    report["sheets"] = _write_sheets(folder, out, source, measures, options.seed)
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(report), encoding="utf-8")
    return report


def _write_dropped(path: Path, source: CaptionedImages, measures: Measures) -> None:
    """One line for each row that is not kept: its name, the reason, and for a duplicate the row it repeats."""
    with path.open("w", encoding="utf-8") as file:
        for row in np.flatnonzero(measures.reason != KEPT).tolist():
            line = {"row": row, "path": source.name(row), "reason": REASONS[measures.reason[row]]}
            if (twin := int(measures.twin[row])) >= 0:
                line["same_as"] = source.name(twin)
            if measures.frame[row] >= 0:
                line["frame"] = int(measures.frame[row])
            if line["reason"] == "unreadable":
                line["detail"] = _fault(source, row)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _fault(source: CaptionedImages, row: int) -> str:
    """Why a picture cannot be read."""
    try:
        decode_image(source.contents(row), wanted=SIDE)
    except ImageError as error:
        return str(error)
    return "could not be read the first time"


def _scores(measures: Measures) -> dict[str, dict[str, float]] | None:
    """Percentiles of the scores before and after; None without scores."""
    found = {}
    for name, scores in (("all", measures.score), ("kept", measures.score[measures.kept])):
        scores = scores[np.isfinite(scores)]
        if len(scores):
            values = np.percentile(scores, (5, 50, 95)).tolist()
            found[name] = {key: round(value, 4) for key, value in zip(("p5", "p50", "p95"), values, strict=True)}
    return found or None


def _write_sheets(
    folder: Path, out: Path, source: CaptionedImages, measures: Measures, seed: int
) -> dict[str, str | None]:
    """Write kept.png and dropped.png; returns the final path of each, None for one without pictures."""
    rng = np.random.default_rng(seed)
    sheets: dict[str, str | None] = {"kept": None, "dropped": None}
    kept = sorted(rng.permutation(measures.kept)[:KEPT_EXAMPLES].tolist())
    tiles = {"kept": _tiles(source, [(row, source.captions(row)[0]) for row in kept], measures)}
    dropped: list[tuple[int, str]] = []
    for number, reason in enumerate(REASONS):
        rows = np.flatnonzero(measures.reason == number) if number != KEPT else np.array([], int)
        chosen = sorted(rng.permutation(rows)[:EXAMPLES].tolist())
        dropped += [(row, ": ".join((reason, *source.captions(row)[:1]))) for row in chosen]
    tiles["dropped"] = _tiles(source, dropped, measures)
    for name, pairs in tiles.items():
        if pairs:
            images, captions = zip(*pairs, strict=True)
            save_png(contact_sheet(images, captions, columns=EXAMPLES), folder / f"{name}.png")
            sheets[name] = str(out / f"{name}.png")
    return sheets


def _tiles(
    source: CaptionedImages, rows: Sequence[tuple[int, str]], measures: Measures
) -> list[tuple[Image.Image, str]]:
    """Rows as small pictures with a text; a duplicate stands left of the picture that was kept instead."""
    tiles = []
    for row, text in rows:
        twin = int(measures.twin[row])
        try:
            image = _small(source, row)
            if twin >= 0:
                image = _beside(image, _small(source, twin))
        except ImageError:
            image = Image.new("RGB", (SIDE, SIDE), "lightgrey")
        tiles.append((image, text))
    return tiles


def _small(source: CaptionedImages, row: int) -> Image.Image:
    image = decode_image(source.contents(row), wanted=SIDE)
    image.thumbnail((SIDE, SIDE))
    return image


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width + 4, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 4, 0))
    return both


def _markdown(report: dict[str, Any]) -> str:
    """The report as Markdown that also reads well as plain text."""
    rows, sheets, share = report["rows"], report["sheets"], _share(report["kept"], report["rows"])
    kept = f"{report['kept']:,} of {amount('row', rows)} {'is' if report['kept'] == 1 else 'are'} kept"
    lines = [f"# Curation of {report['source']}", ""]
    lines += [f"{kept} ({share}), in {amount('shard', report['shards'])}.", "", "## Kept", ""]
    lines += _table(("split", "rows"), [(split, f"{n:,}") for split, n in report["splits"].items()])
    if number := report["plain"]:
        lines += [f"Pictures of one colour among them, which are not compared with others: {number:,}.", ""]
    if report["scores"]:
        names = {"all": "all rows", "kept": "kept rows"}
        figures = [(names[name], *(f"{value:.3f}" for value in row.values())) for name, row in report["scores"].items()]
        lines += _table(("CLIP score", "5 % are below", "median", "5 % are above"), figures)
    if sheets["kept"]:
        lines += ["![A random choice of the kept pictures](kept.png)", ""]
    lines += ["## Dropped", ""]
    if report["dropped"]:
        figures = [(reason, f"{n:,}", _share(n, rows)) for reason, n in report["dropped"].items()]
        lines += _table(("reason", "rows", "of all"), figures)
        lines += ["`dropped.jsonl` names each row with its reason.", ""]
    else:
        lines += ["Nothing.", ""]
    if sheets["dropped"]:
        lines += ["![Examples of each reason, a duplicate beside the picture that it repeats](dropped.png)", ""]
    if report.get("phrases"):
        figures = [(each["phrase"], f"{each['before']:,}", f"{each['after']:,}") for each in report["phrases"]]
        lines += ["## Commonest phrases", "", *_table(("phrase", "rows before the cap", "rows kept"), figures)]
    flags = " ".join(_flags(report["options"])) or "none but the defaults"
    return "\n".join([*lines, "## Options", "", f"    {flags}"]) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _flags(options: dict[str, Any]) -> list[str]:
    """The options that differ from the defaults, as on the command line."""
    usual = asdict(CurationOptions())
    given = {**options, **options["rules"]} if "rules" in options else options
    usual |= usual.pop("rules")
    flags = []
    for name, value in given.items():
        if name == "rules" or value == usual.get(name):
            continue
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        if name == "near" and value is None:
            value = -1
        elif name == "phrases":
            value = f"FILE ({amount('phrase', value)})"
        elif name == "by_group":
            value = "COLUMN"
        elif name == "shares":
            value = ",".join(f"{share:g}" for share in value)
        flags.append(flag if value is True else f"{flag} {value}")
    return flags


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table with columns of even width, and a blank one; none without rows."""
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(row)]
        for row in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    rule = ["-" * width if place == 0 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return [*(f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:])), ""]
