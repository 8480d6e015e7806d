"""Indexes pictures: brings the rows of a database up to date with the picture files and data sources.

They are examined (`examining`) and written batch by batch: a run that is killed loses at most the current batch, and
the next one continues.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from codebrush.data.picture_fitting import Fit, own_fit
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, UsageError
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.search.database import Database, quoted
from codebrush.search.examining import Examined, Examiner
from codebrush.search.index_report import IndexReport
from codebrush.search.pictures import Candidate, Source
from codebrush.search.recall import tune
from codebrush.search.table_rows import add_columns, add_frame_column, rows_of

BATCH = 256  # pictures looked up and written together


class Batch(NamedTuple):
    """Pictures of one source that are examined together, none of them twice, and how many there were with those."""

    candidates: list[Candidate]
    unread: Unread
    count: int


# Examines and writes batches, and yields for each how many pictures it had and what was done with them.
Engine = Callable[[Database, CLIP, Iterator[Batch]], Generator[tuple[int, IndexReport], None, None]]


def index_pictures(
    database: Database,
    sources: Sequence[Source],
    clip: CLIP,
    progress: Progress | None = None,
    fit: Fit | None = None,
    engine: Engine | None = None,
) -> IndexReport:
    """Bring the rows of `sources` up to date: add and replace rows, and delete those whose picture is gone.

    Pictures that cannot be read are skipped and listed in the report. `progress` counts pictures, and then
    measurements of the vector index, if it is measured. Pictures are fitted to what the CLIP reads as the database says
    (`Embedder.fit`); `fit` only checks that it does so in that way. `engine` does the work; None is this process.

    Raises:
        UsageError: if the database was made with another `fit`.
        DataError: if the database is damaged, or a picture of a source that was opened with `strict` cannot be read.
        CodebrushError: if the database cannot be written.
    """
    total, done = sum(source.count for source in sources), 0
    made_with = database.embedder.fit or own_fit(clip)
    if fit not in (None, made_with):
        raise UsageError(f"{database.place} was made with --fit {made_with}: leave it out, or index into another --db")
    report, seen = IndexReport(), set[str]()
    for source in sources:
        new = database.add_source_names(source.renamed)
        report.renamed += [
            {"source": source.name, "column": column, "as": own, "new": column in new}
            for column, own in source.renamed.items()
        ]
    with closing((engine or _in_this_process)(database, clip, _batches(sources, seen))) as parts:
        for count, part in parts:
            report.merge(part)
            done += count
            if progress is not None:
                progress(done, total)
    for source in sources:
        report.removed += _delete_gone(database, source, seen)
    if database.settle():
        report.vector_index = tune(database, progress)
    return report


def check_read(database: Database, report: IndexReport) -> None:
    """Raise a DataError if no picture could be read, and delete the database if it was made for them."""
    is_emptied = not report.skipped and (report.removed or database.count())  # a folder whose pictures are all gone
    if report.added or report.updated or report.unchanged or is_emptied:
        return
    database.discard()
    count = len(report.skipped)
    found = f"none of the {count:,} pictures could be read" if count > 1 else "the picture could not be read"
    raise DataError(f"nothing was indexed into {database.place}: {found if count else 'there are no pictures'}")


def write_examined(database: Database, found: Examined) -> IndexReport:
    """Write what was found in a batch; returns the report of all that was done with it."""
    report = found.report
    report.removed += database.delete(found.stale) if found.stale else 0
    if found.relabelled:  # a new time alone does not count as an update
        add_columns(database, (each.candidate for each in found.relabelled))
        rows = rows_of(database.table.schema, found.relabelled, None, report)
        report.updated += database.write(rows)[1] - found.same
        report.unchanged += found.same
    if found.embedded:
        add_columns(database, (each.candidate for each in found.embedded))
        add_frame_column(database, found.embedded)
        rows = rows_of(database.table.schema, found.embedded, found.embeddings, report)
        added, updated = database.write(rows)
        report.added += added
        report.updated += updated
    return report


def _in_this_process(
    database: Database, clip: CLIP, batches: Iterator[Batch]
) -> Generator[tuple[int, IndexReport], None, None]:
    with closing(Examiner(database, clip)) as examiner:
        for batch in batches:
            yield batch.count, write_examined(database, examiner.examine(batch.candidates, batch.unread))


def _batches(sources: Sequence[Source], seen: set[str]) -> Iterator[Batch]:
    """The pictures of all sources in batches; the paths go into `seen`."""
    for source in sources:
        for batch in source.batches(BATCH):
            yield Batch(list(_numbered(batch, seen)), source.unread, len(batch))


def _numbered(batch: Sequence[Candidate], seen: set[str]) -> Iterator[Candidate]:
    """Yield each file once, and each row of a data source under a unique name."""
    for candidate in batch:
        path, number = candidate.path, 1
        while candidate.data is not None and path in seen:
            number += 1
            path = f"{candidate.path}~{number}"
        if path not in seen:
            seen.add(path)
            yield replace(candidate, path=path)


def _delete_gone(database: Database, source: Source, seen: set[str]) -> int:
    """Delete the rows of a source that it no longer has; returns how many. A file below a folder must be gone from the
    disk too: another process may have indexed it since the folder was listed.
    """
    removed, where = 0, f"source = {quoted(source.name)}"
    if source.is_folder:
        where = f"({where}) OR (modified IS NOT NULL AND starts_with(path, {quoted(source.name + os.sep)}))"
    for part in database.rows(["path", "modified"], where):
        rows = part.to_pylist()
        gone = [row["path"] for row in rows if row["path"] not in seen and _is_gone(row, source)]
        removed += database.delete(gone) if gone else 0
    return removed


def _is_gone(row: dict[str, Any], source: Source) -> bool:
    return not source.is_folder or row["modified"] is None or not os.path.exists(row["path"])
