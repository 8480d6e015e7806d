"""Removes the pictures of sources from a database, and says how to when a source no longer exists."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codebrush.errors import CodebrushError, DataError
from codebrush.files import from_home
from codebrush.search.database import Database, open_database, quoted
from codebrush.search.index_report import IndexReport
from codebrush.search.pictures import Source, open_pictures
from codebrush.search.recall import tune
from codebrush.search.vector_index import settings_of

MOST_NAMED = 10  # sources that a message lists


def remove_sources(database: Database, places: Sequence[str]) -> IndexReport:
    """Delete the rows of sources, which need not exist any more, and of everything below a folder.

    Raises:
        DataError: if the database has no rows of one of them; nothing is deleted then.
    """
    conditions = {place: _of(place) for place in places}
    for place, condition in conditions.items():
        if not database.count(condition):
            raise DataError(f"{database.place} holds no pictures of {place}; its sources are {_sources(database)}")
    report = IndexReport()
    for condition in conditions.values():
        for part in database.rows(["path"], condition):
            report.removed += database.delete(part["path"].to_pylist())
    before = settings_of(database.table.schema)
    if database.settle() and settings_of(database.table.schema) != before:  # the same index finds no less among fewer
        report.vector_index = tune(database)
    return report


def open_all(places: Sequence[str], db: str | Path, **options: Any) -> list[Source]:
    """Open the sources to index into the database `db`, as `open_pictures` does with these options.

    Raises:
        DataError: if one cannot be opened; if it was indexed but no longer exists, with the command that removes it.
    """
    sources = []
    for place in places:
        try:
            sources.append(open_pictures(place, **options))
        except DataError as error:
            if os.path.exists(from_home(place)) or not _holds(db, place):
                raise
            remedy = f"codebrush index --remove {shlex.quote(place)} --db {shlex.quote(str(db))}"
            raise DataError(f"{error}; remove its pictures from the database with {remedy}") from error
    return sources


def _of(place: str) -> str:
    """The SQL condition for the rows of a source; one that no longer exists may have been a file, folder or hub id."""
    path = os.path.abspath(from_home(place))
    below = quoted(path.rstrip(os.sep) + os.sep)
    return f"source IN ({quoted(place)}, {quoted(path)}) OR path = {quoted(path)} OR starts_with(path, {below})"


def _holds(db: str | Path, place: str) -> bool:
    """Whether the place is a path that was indexed; nothing is removed because a hub does not answer."""
    try:
        return open_database(db, quiet=True).count(_of(os.path.abspath(from_home(place)))) > 0
    except CodebrushError:
        return False


def _sources(database: Database) -> str:
    names = sorted({name for part in database.rows(["source"]) for name in part["source"].to_pylist() if name})
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return (", ".join(names[:MOST_NAMED]) or "none") + more
