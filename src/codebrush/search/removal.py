"""Names of sources in; a database without their pictures, or a line that says how to get one, out."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from codebrush.errors import CodebrushError, DataError
from codebrush.search.database import Database, open_database, quoted
from codebrush.search.indexing import IndexReport
from codebrush.search.pictures import Source, open_pictures

MOST_NAMED = 10  # sources of a database in a message


def remove_sources(database: Database, places: Sequence[str]) -> IndexReport:
    """Drop the rows of sources, which may be gone, and of all that lies below a folder.

    Raises DataError, and drops nothing, where the database holds nothing of one of them.
    """
    conditions = {place: _of(place) for place in places}
    for place, condition in conditions.items():
        if not database.count(condition):
            raise DataError(f"{database.path} holds nothing of {place}; its sources are {_sources(database)}")
    report = IndexReport()
    for condition in conditions.values():
        for part in database.rows(["path"], condition):
            report.removed += database.delete(part["path"].to_pylist())
    database.settle()
    return report


def open_all(places: Sequence[str], captions: Sequence[str], image_column: str | None, db: Path) -> list[Source]:
    """The sources to index into the database `db`; the DataError for one that is gone says how to drop its rows."""
    sources = []
    for place in places:
        try:
            sources.append(open_pictures(place, captions, image_column))
        except DataError as error:
            if os.path.exists(os.path.expanduser(place)) or not _holds(db, place):
                raise
            remedy = f"codebrush index --remove {shlex.quote(place)} --db {shlex.quote(str(db))}"
            raise DataError(f"{error}; drop its pictures from the database with {remedy}") from error
    return sources


def _of(place: str) -> str:
    """The SQL condition for the rows of a source. What is gone may have been a file, a folder or a hub id."""
    path = os.path.abspath(os.path.expanduser(place))
    below = quoted(path.rstrip(os.sep) + os.sep)
    return f"source IN ({quoted(place)}, {quoted(path)}) OR path = {quoted(path)} OR starts_with(path, {below})"


def _holds(db: Path, place: str) -> bool:
    """Whether the place is a path that was indexed; that a hub does not answer is no reason to drop anything."""
    try:
        return open_database(db, quiet=True).count(_of(os.path.abspath(os.path.expanduser(place)))) > 0
    except CodebrushError:
        return False


def _sources(database: Database) -> str:
    names = sorted({name for part in database.rows(["source"]) for name in part["source"].to_pylist() if name})
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return (", ".join(names[:MOST_NAMED]) or "none") + more
