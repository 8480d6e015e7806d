"""`codebrush index`: put the pictures of folders and data sources into a database for `codebrush search`."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.cluster import AddressOption, EngineName, EngineOption, WorkersOption, cluster_of
from codebrush.cli.flags.common import FitOption, JsonOption, PackOption, given_flags, refuse
from codebrush.cli.flags.sources import (
    CaptionOption,
    DbOption,
    ExcludeOption,
    ImageColumnOption,
    MaxPixelsOption,
    PathsArgument,
    StrictOption,
)
from codebrush.cli.output.printing import print_json, print_skipped, progress_bar

if TYPE_CHECKING:
    from codebrush.search.index_report import IndexReport
    from codebrush.search.pictures import Source


def index(
    context: typer.Context,
    paths: PathsArgument,
    db: DbOption,
    caption: CaptionOption = None,
    image_column: ImageColumnOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Remove the pictures of these paths from the database; they need not exist."),
    ] = False,
    fit: FitOption = None,
    engine: EngineOption = EngineName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Add pictures to a database for codebrush search.

    It stores their CLIP embeddings and captions. When run again with the same paths, it adds new pictures, updates
    changed ones and removes those that are gone. Pictures that cannot be read are reported and skipped.
    """
    start = time.perf_counter()
    from codebrush.search.database import WORDS_UPDATED, Embedder, create_database, open_database
    from codebrush.search.places import check_installed

    check_installed()  # before a pack is loaded
    cluster = cluster_of(context)
    if remove:
        unused = ("caption", "image_column", "exclude", "strict", "fit", "engine")
        refuse(given_flags(context), unused, "cannot be used with --remove, which reads no pictures")
        from codebrush.search.removal import remove_sources

        report = remove_sources(open_database(db, quiet=True), list(dict.fromkeys(paths)))
        _print_notes(report, [])
        return _print_report(report, db, start, json_output)
    from codebrush.distributed.indexing import ray_engine
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.search.indexing import check_read, index_pictures
    from codebrush.search.removal import open_all

    brush = Codebrush.from_pretrained(pack)
    named = {"captions": caption or (), "image_column": image_column, "strict": strict, "exclude": exclude or ()}
    sources = open_all(list(dict.fromkeys(paths)), db, **named)
    rule = None if fit is None else fit.value
    embedder = Embedder(brush.pack.name, clip_hash(brush.pack.member("clip")), rule)
    with cluster as joined, progress_bar("indexing") as progress:
        database = create_database(db, embedder, brush.clip.embed_dim, quiet=True)
        if database.update_words():
            print(f"codebrush: {WORDS_UPDATED}", file=sys.stderr)
        shared = None if joined is None else ray_engine(joined)
        report = index_pictures(database, sources, brush.clip, progress, rule, shared)
    _print_notes(report, sources)
    check_read(database, report)
    _print_report(report, db, start, json_output, [each.unread.report for each in sources])


def _print_notes(report: "IndexReport", sources: "Sequence[Source]") -> None:
    """Say on stderr what was skipped, and how columns were read."""
    print_skipped(report.skipped)
    for source in sources:  # said once; __key__ and the like are no columns that a user has written
        new = [each for each in report.renamed if each["source"] == source.name and each["new"]]
        names = ", ".join(f"{each['column']!r} is {each['as']}" for each in new if not each["column"].startswith("__"))
        if names:
            print(f"codebrush: columns of {source.name} with other names in the database: {names}", file=sys.stderr)
        if source.captionless:
            print(f"codebrush: {source.name}: {_captionless(source.captionless)}", file=sys.stderr)
    if report.vector_index is not None:
        from codebrush.search.recall import described

        print(f"codebrush: {described(report.vector_index)}", file=sys.stderr)
    for each in report.unfit:
        print(f"codebrush: {_unfit(each)}", file=sys.stderr)


def _print_report(
    report: "IndexReport", db: str, start: float, json_output: bool, unread: Sequence[dict[str, Any]] = ()
) -> None:
    seconds = round(time.perf_counter() - start, 3)
    if json_output:
        print_json({**asdict(report), "unread": list(unread), "seconds": seconds})
        return
    reused = f" ({report.reused:,} of them known under other paths)" if report.reused else ""
    done = f"{report.added:,} added{reused}, {report.updated:,} updated, {report.removed:,} removed"
    print(f"{db}: {done}, {report.unchanged:,} unchanged, {len(report.skipped):,} skipped; {seconds:.1f} seconds")


def _captionless(columns: Sequence[str]) -> str:
    """The message about a source of which no column has captions by its name."""
    return f'no column of captions among {", ".join(columns)}; --caption "{{{columns[0]}}}" makes captions of that one'


def _unfit(entry: dict[str, Any]) -> str:
    """The message about a column with cells that do not fit it."""
    lost = f"{entry['cells']:,} cell{'s' if entry['cells'] > 1 else ''} left empty"
    return (
        f"the column {entry['column']} holds {entry['holds']}: {lost}, first {entry['value']!r} of {entry['path']}; "
        "rename the column in one of the sources, or index them into different databases"
    )
