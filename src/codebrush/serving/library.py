"""The folders that the server may read: which file a request's path stands for, and where the indexes of folders lie.

A request names a place by the library's name and the way in it, `pictures/cats` or `pictures/cats.csv`. Nothing else
reaches the file system, and no place that leads out of the libraries, by links either.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codebrush.data.decoding.picture_formats import EXTENSIONS
from codebrush.data.sources.file_names import escaped, existing
from codebrush.data.sources.tables import BUILDERS
from codebrush.errors import UsageError
from codebrush.serving.job import JobError

DATABASE, ABOUT = "pictures.db", "index.json"
INDEX_ID = re.compile(r"[0-9a-f]{16}")
MOST_ENTRIES = 1000  # of a folder that is listed
NO_LIBRARY = "the server was started without a library: start it with --library FOLDER"


@dataclass(frozen=True)
class Entry:
    """A folder or a table of pictures in a library; `pictures` is how many picture files a folder itself holds."""

    place: str
    kind: str
    pictures: int | None = None


class Library:
    """The folders of `roots`, each under its own name, and the indexes of what is in them, in the folder `data`.

    Raises:
        UsageError: if one of them is no folder, or `data` lies in it.
    """

    def __init__(self, roots: Sequence[Path], data: Path) -> None:
        self.data = data.absolute()
        self.indexes = self.data / "indexes"
        self.roots: dict[str, Path] = {}
        self._secret = secrets.token_bytes(32)
        for root in roots:
            path = Path(os.path.realpath(root))
            if not path.is_dir():
                raise UsageError(f"--library {root} is no folder")
            if Path(os.path.realpath(data)).is_relative_to(path):
                raise UsageError(f"--library {root} holds --data {data}, what callers get: name another folder for it")
            if path in self.roots.values():
                continue
            name, number = _plain(escaped(path.name)), 1
            while name in self.roots:
                number += 1
                name = f"{_plain(escaped(path.name))}-{number}"
            self.roots[name] = path

    def find(self, place: str) -> Path:
        """The file or folder that a place names. Raises JobError if there is none, or it leads out of the library."""
        if not self.roots:
            raise JobError("no_library", NO_LIBRARY)
        name, *parts = place.split("/")
        if "\0" in place or "\\" in place or any(part in ("", ".", "..") for part in parts):
            raise JobError("invalid_path", "a place is written like pictures/cats, with the library's name first")
        if name not in self.roots:
            raise JobError("not_in_library", f"there is no library '{name}': there are {', '.join(self.roots)}")
        try:
            path = existing(self.roots[name].joinpath(*parts))
            found, inside = path.exists(), self.holds(path)
        except (OSError, ValueError):  # a name that is too long, or cannot be written as a name
            found, inside = False, True
        if not inside:
            raise JobError("invalid_path", f"'{place}' leads out of the library: name what it links to as --library")
        if not found:
            raise JobError("not_in_library", f"there is no '{place}'")
        return path

    def holds(self, path: str | Path) -> bool:
        """Whether a path, with all links in it followed, lies in a library."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(root) for root in self.roots.values())

    def check_links(self, path: Path) -> None:
        """Raise JobError for a link below a folder that leads out of the libraries. Hidden ones are never read."""
        waiting, seen = [path], set[str]()
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in seen or not folder.is_dir():
                continue
            seen.add(real)
            for entry in _listed(folder):
                if entry.is_symlink() and not self.holds(entry.path):
                    link = self.place(entry.path)
                    raise JobError("invalid_path", f"'{link}' links to something outside the library: remove it")
                if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))

    def place(self, path: str | Path) -> str:
        """What requests and replies call a path in a library; a picture in a data source is PATH#NAME."""
        text = escaped(str(path))
        for name, root in sorted(self.roots.items(), key=lambda item: -len(str(item[1]))):
            if text == escaped(str(root)):
                return name
            if text.startswith(escaped(str(root)) + os.sep):
                return f"{name}/{text[len(escaped(str(root))) + 1 :].replace(os.sep, '/')}"
        return os.path.basename(text)

    def without_paths(self, text: str) -> str:
        """A message with the places of libraries by their names, and without the folder of the server's data."""
        for name, root in sorted(self.roots.items(), key=lambda item: -len(str(item[1]))):
            text = text.replace(str(root), name)
        for folder in (str(self.data), os.path.realpath(self.data)):
            text = text.replace(f"{folder}{os.sep}", "").replace(folder, "the server's folder")
        return text

    def entries(self, place: str) -> list[Entry]:
        """The folders and tables in a folder of a library."""
        path = self.find(place)
        found = []
        for entry in sorted(_listed(path), key=lambda each: each.name)[:MOST_ENTRIES]:
            name, ending = f"{place}/{escaped(entry.name)}", os.path.splitext(entry.name)[1].lower()
            if not self.holds(entry.path):
                continue
            if entry.is_dir():
                found.append(Entry(name, "folder", pictures_in(Path(entry.path))))
            elif ending in BUILDERS:
                found.append(Entry(name, "table"))
        return found

    def places(self) -> list[Entry]:
        """The libraries with the folders and tables in them, as many levels deep as they are few."""
        found = [Entry(name, "folder", pictures_in(root)) for name, root in self.roots.items()]
        seen = set[str]()
        for entry in found:  # grows meanwhile
            if entry.kind == "folder" and len(found) < MOST_ENTRIES:
                with suppress(JobError):
                    real = os.path.realpath(self.find(entry.place))
                    found += [] if real in seen else self.entries(entry.place)
                    seen.add(real)
        return sorted(found[:MOST_ENTRIES], key=lambda entry: entry.place.split("/"))

    # Indexes.

    def index_folder(self, path: Path, clip: str) -> Path:
        """Where the index of a place by the CLIP with this hash lies."""
        name = hashlib.sha256(f"{os.path.realpath(path)}\0{clip}".encode("utf-8", "surrogateescape")).hexdigest()
        return self.indexes / name[:16]

    def index_list(self) -> list[dict[str, Any]]:
        """What is known of each index, and whether its place is gone from the libraries."""
        found = []
        for about in sorted(self.indexes.glob(f"*/{ABOUT}")):
            with suppress(OSError, ValueError, KeyError, TypeError, JobError):
                found.append(self.index(about.parent.name))
        return found

    def index(self, index: str) -> dict[str, Any]:
        """What is known of an index. Raises JobError if there is none."""
        try:
            if not INDEX_ID.fullmatch(index):
                raise ValueError(index)
            known = json.loads((self.indexes / index / ABOUT).read_text(encoding="utf-8"))
            found = {"id": index, **known, "gone": not self._is_there(str(known["folder"]))}
        except (OSError, ValueError, KeyError, TypeError):
            raise JobError("not_found", f"there is no index '{index}'") from None
        return found

    def _is_there(self, place: str) -> bool:
        with suppress(JobError):
            return self.find(place).exists()
        return False

    def picture_id(self, path: str) -> str:
        """A name for a row of an index, by its path."""
        return base64.urlsafe_b64encode(self.place(path).encode()).decode().rstrip("=")

    def path_of(self, picture: str) -> str:
        """The path of a row by its id; nothing is read there. Raises JobError for what is no id."""
        with suppress(ValueError, binascii.Error):
            place = base64.b64decode(picture + "=" * (-len(picture) % 4), b"-_", validate=True).decode()
            name, slash, rest = place.partition("/")
            if name in self.roots:
                root = escaped(str(self.roots[name]))
                return f"{root}{os.sep}{rest.replace('/', os.sep)}" if slash else root
        raise JobError("picture_not_found", "there is no picture with this id")

    def signature(self, index: str, picture: str) -> str:
        """What makes the address of a thumbnail one that nobody can guess."""
        return hmac.new(self._secret, f"{index}/{picture}".encode(), hashlib.sha256).hexdigest()[:32]


def pictures_in(folder: Path) -> int:
    """How many picture files a folder itself holds."""
    return sum(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for entry in _listed(folder))


def _listed(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder that can be seen; none of one that cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _plain(name: str) -> str:
    """A folder's name without what a place's name cannot hold."""
    return name.replace("/", "_").replace("\\", "_") or "library"
