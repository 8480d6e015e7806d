"""Finds the pictures that the cells of a table name: by path, without the ending, or by a bare name in any folder."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.decoding.picture_formats import EXTENSIONS
from codebrush.data.sources.file_names import comparable, escaped, existing
from codebrush.data.sources.filters import is_empty
from codebrush.data.sources.folder_files import files_in
from codebrush.data.sources.unread import Unread, enumeration

if TYPE_CHECKING:
    from datasets import Dataset

DRIVE = re.compile(r"[A-Za-z]:/")  # a whole path of Windows
MOST_LOOKED_AT = 1_000  # rows in which a column of file names is looked for by its cells
MOST_FOLDERS = 3  # that a message lists


class PictureNames:
    """The `pictures` below `folder`, relative to it with / between the parts, by what a table may call them."""

    def __init__(self, folder: Path, pictures: Sequence[str]) -> None:
        whole = {comparable(str(folder / name)): escaped(name) for name in pictures}
        paths = {comparable(name): escaped(name) for name in pictures}
        self._names = _unambiguous([(posixpath.splitext(name)[0], own) for name, own in paths.items()])
        self._names |= whole | paths
        self._folded = _unambiguous([(name.casefold(), own) for name, own in paths.items()])
        self._bare: dict[str, list[str]] = {}
        for name, own in paths.items():
            bare = posixpath.basename(name).casefold()
            for form in {bare, posixpath.splitext(bare)[0]}:
                self._bare.setdefault(form, []).append(own)

    @classmethod
    def below(cls, folder: Path) -> "PictureNames":
        """Those of all picture files below a folder."""
        names = files_in(folder, Unread(str(folder)))
        return cls(folder, [name for name in names if posixpath.splitext(name)[1].lower() in EXTENSIONS])

    def find(self, table: str, cell: Any) -> str | None:
        """The picture that a cell of `table` (relative to the folder) names, escaped; None if there is none.

        A name without a folder may be that of the only such picture in the folders below the table; a whole path of
        another place is known by its end.
        """
        return self._here(table, cell) or self._by_end(relative(table, cell))

    def named(self, table: str, cells: Sequence[Any], unread: Unread) -> list[str]:
        """The pictures, escaped, that the cells of a table mean, else their paths. Several whole paths that could mean
        one picture by their ends mean none. What was found by ends is noted.
        """
        here = [self._here(table, cell) for cell in cells]
        paths = [relative(table, cell) or "" for cell in cells]
        ends = {path: end for path, own in zip(paths, here, strict=True) if not own and (end := self._by_end(path))}
        often = Counter([*ends.values(), *(own for own in {*here} if own)])
        ends = {path: end for path, end in ends.items() if often[end] == 1}
        if ends:
            first, end = next(iter(ends.items()))
            unread.note(f"{table} has whole paths of another place; {escaped(first)} is read as {end}, and others so")
        return [own or ends.get(path) or escaped(path) for own, path in zip(here, paths, strict=True)]

    def _here(self, table: str, cell: Any) -> str | None:
        path = relative(table, cell)
        if path is None:
            return None
        if found := self._called(path):
            return found
        others = [] if "/" in _slashed(cell) else self._elsewhere(table, cell)
        return others[0] if len(others) == 1 else None

    def _called(self, path: str) -> str | None:
        name = comparable(path)
        return self._names.get(name) or self._folded.get(name.casefold())

    def _by_end(self, path: str | None) -> str | None:
        """The picture with the longest end of a whole path for its name."""
        if path is None or not (path.startswith("/") or DRIVE.match(path)):
            return None
        parts = [part for part in path.split("/") if part]
        found = (self._called("/".join(parts[start:])) for start in range(1, len(parts)))
        return next((name for name in found if name), None)

    def reason(self, table: str, cell: Any) -> str:
        """Why a cell that `find` gives no picture for names none, if pictures of this name are below the table; else
        "".
        """
        others = [] if is_empty(cell) else self._elsewhere(table, cell)
        if not others:
            return ""
        place = posixpath.dirname(table) or "."
        folders = [posixpath.dirname(posixpath.relpath(name, place)) for name in others]
        shown = [f"{folder}/" if folder else "the folder of the table" for folder in dict.fromkeys(folders)]
        more = [f"{len(shown) - MOST_FOLDERS:,} more"] if len(shown) > MOST_FOLDERS else []
        example = posixpath.relpath(others[0], place)
        return (
            f"names {str(cell).strip()}, which is in {enumeration([*shown[:MOST_FOLDERS], *more])}: write paths from "
            f"the table's folder, like {example}"
        )

    def _elsewhere(self, table: str, cell: Any) -> list[str]:
        """The pictures below the table with the bare name of a cell."""
        place = posixpath.dirname(table)
        found = self._bare.get(comparable(posixpath.basename(_slashed(cell))).casefold(), [])
        return [name for name in found if name.startswith(f"{escaped(place)}/" if place else "")]


def _slashed(cell: Any) -> str:
    return str(cell).strip().replace("\\", "/")


def relative(table: str, cell: Any) -> str | None:
    """The path relative to the folder, of a cell relative to the table's place; None for an empty cell."""
    if is_empty(cell):
        return None
    path = _slashed(cell)
    return os.path.normpath(path if DRIVE.match(path) else posixpath.join(posixpath.dirname(table), path))


def _unambiguous(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs of a key and a value as a table, without keys that stand there several times."""
    often = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if often[key] == 1}


def naming_column(rows: Iterable[Mapping[str, Any]], is_known: Callable[[str], bool]) -> str | None:
    """The first column with a cell that has the ending of a picture file and is the name of one, by `is_known`."""
    for row in rows:
        for column, cell in row.items():
            if isinstance(cell, str) and posixpath.splitext(cell.strip())[1].lower() in EXTENSIONS and is_known(cell):
                return column
    return None


def first_rows(dataset: "Dataset") -> list[dict[str, Any]]:
    """The cells of text in the first rows, in which `naming_column` is looked for."""
    kinds = {field.name: str(field.type) for field in dataset.features.arrow_schema}
    texts = dataset.select_columns([name for name, kind in kinds.items() if kind in ("string", "large_string")])
    return texts.select(range(min(len(texts), MOST_LOOKED_AT))).to_list() if texts.column_names else []


def column_note(table: str, column: str) -> str:
    """What is said of a column of file names that was found by its cells."""
    return f"{table}: its column {column} is read as the file names, because its cells are names of pictures"


def with_found_pictures(paths: "Dataset", base: Path, unread: Unread) -> "Dataset":
    """The only column of `paths`, relative to `base`, with those of no file replaced by the picture that has the name.

    If pictures of the name are there, but it is not clear which is meant, the source is named with the reason.
    """
    from datasets import Dataset

    (column,) = paths.column_names
    cells = paths[:][column]
    gone = [cell for cell in cells if not is_empty(cell) and not os.path.lexists(existing(base / cell))]
    if not gone:
        return paths
    names, table = PictureNames.below(base), posixpath.basename(unread.origin)
    found = dict(zip(gone, names.named(table, gone, unread), strict=True))
    name_unclear(unread.origin, table, [cell for cell in gone if names.find(table, cell) is None], names, unread)
    return Dataset.from_dict({column: [found.get(cell, cell) for cell in cells]}, features=paths.features)


def name_unclear(item: str, table: str, cells: Iterable[Any], names: PictureNames, unread: Unread) -> None:
    """Name a table once if cells without a picture have the bare names of some that are there."""
    reasons = [reason for cell in cells if (reason := names.reason(table, cell))]
    if reasons:
        more = f" ({len(reasons):,} rows are like this)" if len(reasons) > 1 else ""
        unread.name(item, f"{reasons[0]}{more}")
