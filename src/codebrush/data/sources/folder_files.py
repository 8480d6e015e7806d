"""Walks a folder and accounts for every entry in it: files to read, links, and what systems leave there."""

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from codebrush.data.decoding.picture_formats import EXTENSIONS
from codebrush.data.sources.file_names import escaped
from codebrush.data.sources.system_folders import SYSTEM_FOLDERS
from codebrush.data.sources.unread import Unread

SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
SPECIAL = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))


def files_in(folder: Path, unread: Unread, exclude: Sequence[str] = ()) -> list[str]:
    """Every file below `folder` that may be read, relative to it with / between the parts, sorted.

    Linked folders are followed once each, by their real path, after those that really stand there. `exclude` are
    patterns like *.bak or drafts/*, for a name or for the whole relative path. What is left out goes into `unread`.
    """
    walk = _Walk(folder, unread, exclude)
    names = list(walk.take(folder, ""))
    for place, relative in walk.links:
        if os.path.realpath(place) in walk.visited:
            unread.count("linked folder that is read already")
        else:
            names += walk.take(place, f"{relative}/")  # adds the links within it
    return sorted(names)


class _Walk:
    def __init__(self, folder: Path, unread: Unread, exclude: Sequence[str]) -> None:
        self.folder, self.unread, self.exclude = folder, unread, exclude
        self.visited: set[str] = set()
        self.links: list[tuple[Path, str]] = []

    def take(self, place: Path, prefix: str) -> Iterator[str]:
        """The files below one folder that is no link, and the links in it for later."""
        waiting = [(place, prefix, os.path.realpath(place))]  # not by recursion: they may be deeper than Python's stack
        while waiting:
            place, prefix, real = waiting.pop()
            self.visited.add(real)
            try:
                entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            except OSError as error:
                self.unread.name(escaped(str(place)), (error.strerror or str(error)).lower())
                continue
            for entry in entries:
                relative = f"{prefix}{entry.name}"
                if kind := self._left_out(entry, relative):
                    self.unread.count(kind)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((place / entry.name, f"{relative}/", os.path.join(real, entry.name)))
                elif os.path.isdir(entry):  # entry.is_dir raises OSError for a link to itself
                    self.links.append((place / entry.name, relative))
                else:
                    yield relative

    def _left_out(self, entry: os.DirEntry[str], relative: str) -> str | None:
        """The kind of an entry that is not read, None for one that is, or that is a picture by its name."""
        try:
            mode = entry.stat().st_mode
        except OSError:
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                return None  # named when it is decoded
            return "broken link" if entry.is_symlink() else "file that cannot be reached"
        what = "folder" if stat.S_ISDIR(mode) else "file"
        if any(fnmatch(entry.name, pattern) or fnmatch(relative, pattern) for pattern in self.exclude):
            return f"{what} that --exclude leaves out"
        if entry.name.lower() in (SYSTEM_FOLDERS if what == "folder" else SYSTEM_FILES):
            return f"{what} of the operating system" if what == "file" else f"folder called {entry.name}"
        if entry.name.startswith("."):
            return f"hidden {what}"
        return next((kind for test, kind in SPECIAL if test(mode)), None)
