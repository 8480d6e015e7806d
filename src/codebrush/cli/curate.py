"""`codebrush curate`: writes the captioned pictures that are worth training on as shards."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.cluster import AddressOption, EngineName, EngineOption, WorkersOption, cluster_of
from codebrush.cli.flags.common import JsonOption, given_flags, refuse
from codebrush.cli.flags.sources import (
    CaptionOption,
    ExcludeOption,
    ImageColumnOption,
    LimitOption,
    MaxPixelsOption,
    SourceArgument,
    SplitOption,
    StrictOption,
    WhereOption,
)
from codebrush.cli.output.printing import print_json, progress_bar
from codebrush.data.sources.unread import amount
from codebrush.errors import CodebrushError, UsageError
from codebrush.warned import warn

if TYPE_CHECKING:
    from codebrush.data.curation.clip_scorer import ClipScorer
    from codebrush.data.curation.options import CurationOptions

CAPTIONS, PICTURES, SCORES, BALANCE = "Captions", "Pictures", "CLIP score", "Balance and split"  # headings of the help
DEFAULT_PACK = "emoji"


class Kind(StrEnum):
    """The format of the shards."""

    TAR = "tar"
    PARQUET = "parquet"


def _option(topic: str, text: str, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=topic, **settings)


NearOption = Annotated[
    int, _option(PICTURES, "Bits (of 64) by which the image hashes of near duplicates may differ; -1 keeps them.")
]


def curate(
    context: typer.Context,
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help="The folder to write; it must be new or empty.")],
    caption: CaptionOption = None,
    split: SplitOption = None,
    where: WhereOption = None,
    image_column: ImageColumnOption = None,
    limit: LimitOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    min_side: Annotated[int, _option(PICTURES, "Minimum length of the shorter side in pixels.", min=1)] = 1,
    max_aspect: Annotated[float | None, _option(PICTURES, "Maximum aspect ratio (long side over short).")] = None,
    near: NearOption = 4,
    min_words: Annotated[int, _option(CAPTIONS, "Minimum number of words.", min=0)] = 1,
    max_words: Annotated[int | None, _option(CAPTIONS, "Maximum number of words.", min=1)] = None,
    max_chars: Annotated[int | None, _option(CAPTIONS, "Maximum number of characters.", min=1)] = None,
    language: Annotated[str | None, _option(CAPTIONS, "Keep captions in this script: en, latin, ja ...")] = None,
    min_score: Annotated[float | None, _option(SCORES, "Minimum CLIP score (cosine of picture and caption).")] = None,
    keep_top: Annotated[float | None, _option(SCORES, "Share of the rows to keep, best scores first: 0 to 1.")] = None,
    pack: Annotated[str, _option(SCORES, "Pack whose CLIP scores: built-in name, folder or hub id.")] = DEFAULT_PACK,
    cap: Annotated[int | None, _option(BALANCE, "Thin out each phrase to about this many rows, as MetaCLIP.")] = None,
    phrases: Annotated[Path | None, _option(BALANCE, "File with the phrases for --cap.  [all words]")] = None,
    only_phrases: Annotated[bool, _option(BALANCE, "Drop rows with none of --phrases.", "--only-phrases")] = False,
    group: Annotated[str | None, _option(BALANCE, "Column whose equal values share a split.  [captions]")] = None,
    shares: Annotated[str, _option(BALANCE, "Shares of the train, val and test splits.")] = "0.9,0.05,0.05",
    kind: Annotated[Kind, typer.Option("--format", help="Write WebDataset shards (tar) or Parquet files.")] = Kind.TAR,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows in each shard.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Random seed of --cap and of the examples in the report.")] = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
) -> None:
    """Filter captioned pictures for training.

    Writes those worth training on as shards, with a report. Drops rows that cannot be read, break a rule, do not match
    their caption, are duplicates, or are too common, and divides the rest into train, val and test. SOURCE is not
    changed.
    """
    start = time.perf_counter()
    if min_score is None and keep_top is None:
        refuse(given_flags(context), ("pack",), "is for scores: add --min-score or --keep-top")
    cluster = cluster_of(context)
    options = _options(context.params)
    from codebrush.data.curation.curate import curate as write
    from codebrush.data.sources.captioned_images import open_source
    from codebrush.distributed.measuring import measure_on

    named: dict[str, Any] = {"split": split, "where": where or (), "captions": caption or ()}
    named |= {"image_column": image_column, "group": group, "limit": limit, "exclude": exclude or (), "strict": strict}
    rows = open_source(source, **named, require_captions=False)
    scorer = _scorer(pack, engine) if options.needs_scores else None
    with cluster as joined, progress_bar("curating") as progress:
        report = write(rows, out, options, scorer, progress, None if joined is None else measure_on(joined))
    report |= {"unread": rows.unread.report, "phases": report["seconds"]}
    report["seconds"] = round(time.perf_counter() - start, 3)
    _warn_of_empty(report["splits"])
    print_json(report) if json_output else _print(report)


def _options(given: dict[str, Any]) -> "CurationOptions":
    from codebrush.data.curation.caption_rules import CaptionRules
    from codebrush.data.curation.options import CurationOptions

    rules = CaptionRules(given["min_words"], given["max_words"], given["max_chars"], given["language"])
    same = ("min_side", "max_aspect", "min_score", "keep_top", "cap", "only_phrases", "shard_rows", "seed")
    return CurationOptions(
        rules=rules,
        near=None if given["near"] == -1 else given["near"],
        phrases=None if given["phrases"] is None else _read_phrases(given["phrases"]),
        shares=_read_shares(given["shares"]),
        by_group=given["group"] is not None,
        kind=given["kind"].value,
        **{name: given[name] for name in same},
    )


def _read_phrases(path: Path) -> tuple[str, ...]:
    from codebrush.data.curation.caption_rules import read_phrases
    from codebrush.files import read_entries

    phrases = read_phrases(read_entries(path, "phrase", CodebrushError))
    if not phrases:
        raise CodebrushError(f"{path}: has no phrase; give a text file with one phrase a line")
    return tuple(phrases)


def _read_shares(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--shares is {text}; give three numbers for train, val and test, like 0.9,0.05,0.05"
        ) from None
    return train, val, test


def _scorer(pack: str, engine: EngineName) -> "ClipScorer":
    from codebrush.data.curation.clip_scorer import ClipScorer
    from codebrush.models.precision import usable_device
    from codebrush.pack.pack import open_clip

    clip, tokenizer = open_clip(pack)
    device = "cpu" if engine is EngineName.RAY else usable_device(None)  # each worker moves its own
    return ClipScorer(clip.to(device), tokenizer)


def _warn_of_empty(splits: dict[str, int]) -> None:
    empty = [name for name, rows in splits.items() if not rows]
    if empty:
        hint = "split by a column with more values (--group), or change --shares"
        warn(f"no row is in the split {' or '.join(empty)}: {hint}")


def _print(report: dict[str, Any]) -> None:
    are = "is" if report["kept"] == 1 else "are"
    kept = f"{report['kept']:,} of {amount('row', report['rows'])} {are} kept"
    print(f"{kept}, in {amount('shard', report['shards'])} in {report['path']}")
    for reason, number in report["dropped"].items():
        print(f"  {number:,} dropped: {reason}")
    for split, number in report["splits"].items():
        print(f"  {split}: {number:,}")
    print(f"see {Path(report['path']) / 'report.md'}, and dropped.jsonl for each row; {report['seconds']:.1f} seconds")
