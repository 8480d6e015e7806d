"""`codebrush index`: folders and data sources of pictures into a database that can be searched."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags import given_flags, refuse
from codebrush.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from codebrush.search.indexing import IndexReport


def index(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Folders, pictures, .parquet, .tar, .csv, .jsonl files, hub ids.")],
    db: Annotated[Path, typer.Option(help="Folder of the database, made if it is not there.")],
    caption: Annotated[list[str] | None, typer.Option(help='Caption template, like "{label}, {style} style".')] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the pictures.  [found]")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Drop what the paths have in it; they may be gone.")] = False,
    pack: Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")] = "emoji",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Embed pictures into a database for codebrush search.

    Run again with the same paths, it embeds what is new or has changed, and drops what is gone. Pictures that cannot
    be read are named and skipped.
    """
    start = time.perf_counter()
    if remove:
        refuse(given_flags(context), ("caption", "image_column"), "cannot go with --remove, which reads no picture")
        from codebrush.search.database import open_database
        from codebrush.search.removal import remove_sources

        report = remove_sources(open_database(db, quiet=True), list(dict.fromkeys(paths)))
        return _tell(report, db, start, json_output)
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.search.database import Mark, create_database
    from codebrush.search.indexing import check_read, index_pictures
    from codebrush.search.removal import open_all

    brush = Codebrush.from_pretrained(pack)
    sources = open_all(list(dict.fromkeys(paths)), caption or (), image_column, db)
    mark = Mark(brush.pack.name, clip_hash(brush.pack.member("clip")))
    database = create_database(db, mark, brush.clip.embed_dim, quiet=True)
    with progress_bar("indexing") as progress:
        report = index_pictures(database, sources, brush.clip, progress)
    for each in report.skipped:
        print(f"codebrush: skipped {each['path']}: {each['reason']}", file=sys.stderr)
    for each in report.unfit:
        print(f"codebrush: {_unfit(each)}", file=sys.stderr)
    check_read(database, report)
    _tell(report, db, start, json_output)


def _tell(report: "IndexReport", db: Path, start: float, json_output: bool) -> None:
    seconds = round(time.perf_counter() - start, 3)
    if json_output:
        print_json({**asdict(report), "seconds": seconds})
        return
    done = f"{report.added:,} added, {report.updated:,} updated, {report.removed:,} removed"
    print(f"{db}: {done}, {report.unchanged:,} unchanged, {len(report.skipped):,} skipped; {seconds:.1f} seconds")


def _unfit(told: dict[str, Any]) -> str:
    lost = f"{told['cells']:,} cell{'s' if told['cells'] > 1 else ''} left empty"
    return (
        f"the column {told['column']} holds {told['holds']}: {lost}, {told['value']!r} of {told['path']} first; "
        "rename the column in one of the sources, or index them into different databases"
    )
