"""Finds and reads the caption files beside pictures: cat.txt, cat.caption, cat.png.txt, cat.json and their like."""

import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from codebrush.data.sources.caption_templates import cell_text
from codebrush.data.sources.column_names import CAPTION_COLUMNS, usual_columns
from codebrush.data.sources.file_names import comparable, escaped, existing
from codebrush.data.sources.filters import is_empty
from codebrush.data.sources.json_columns import whole_characters
from codebrush.data.sources.text_files import read_text, split_lines
from codebrush.data.sources.unread import Unread

BOX = re.compile(r"\d+(\s+-?\d*\.\d+(e-?\d+)?){4,}")  # a class and its place in the picture
ENDINGS = (".txt", ".caption", ".captions", ".cap", ".text", ".json")  # in any case; the first that exists is read


TAKEOUT = "supplemental-metadata"  # of Google Photos: a.jpg.supplemental-metadata.json, cut off where a name is long
_TAKEOUT_NAME = re.compile(
    rf"(?P<stem>.+)\.(?:{'|'.join(TAKEOUT[:length] for length in range(len(TAKEOUT), 0, -1))})(?P<number>\(\d+\))?"
)


def _picture_of_takeout(stem: str) -> str | None:
    """The picture whose data a .json file of Google Takeout has, by its name without .json; None for another file.

    The number of a second file of one name stands elsewhere there: a.jpg.supplemental-metadata(1) is that of a(1).jpg.
    """
    found = _TAKEOUT_NAME.fullmatch(stem)
    if found is None:
        return None
    name, ending = posixpath.splitext(found["stem"])
    return f"{name}{found['number'] or ''}{ending}"


class CaptionFiles:
    """The caption files among the `names` of a folder, each a path with / between its parts."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names: dict[str, dict[str, str]] = {}  # path without ending -> ending -> file
        self._takeout: dict[str, str] = {}  # picture -> file
        for name in names:
            stem, ending = posixpath.splitext(name)
            if ending.lower() in ENDINGS:
                self._names.setdefault(comparable(stem), {}).setdefault(ending.lower(), name)
            if ending.lower() == ".json" and (picture := _picture_of_takeout(stem)) is not None:
                self._takeout.setdefault(comparable(picture), name)

    def beside(self, picture: str) -> str | None:
        """The caption file of a picture, whose name with or without its ending comes before that of the caption."""
        whole = comparable(picture)
        for stem in (posixpath.splitext(whole)[0], whole):
            found = self._names.get(stem, {})
            for ending in ENDINGS:
                if ending in found:
                    return found[ending]
        return self._takeout.get(whole)


def captions_beside(picture: Path, unread: Unread) -> list[str]:
    """The captions in the caption file beside a picture, none if there is none or it cannot be read.

    Its folder, which may be long, is not listed: endings are tried in small letters, capitals and with one capital.
    """
    stems = [picture.with_suffix(""), picture]
    forms = (form for end in ENDINGS for form in (end, end.upper(), end.title()))
    names = [*(f"{stem}{form}" for stem, form in product(stems, forms)), *_takeout_files(picture)]
    tried = (existing(Path(name)) for name in names)
    found = next((path for path in tried if path.is_file()), None)
    return [] if found is None else captions_in(found, unread)


def _takeout_files(picture: Path) -> Iterator[str]:
    """The names that Google Takeout may give to the data of a picture."""
    numbered = re.fullmatch(r"(.+)(\(\d+\))", picture.stem)
    places = [(picture, "")]
    if numbered is not None:
        places.append((picture.with_name(f"{numbered[1]}{picture.suffix}"), numbered[2]))
    for (place, number), length in product(places, range(len(TAKEOUT), 0, -1)):
        yield f"{place}.{TAKEOUT[:length]}{number}.json"


def captions_in(path: Path, unread: Unread) -> list[str]:
    """The captions in a caption file (see `read_captions`); none, and the file named, if it cannot be read."""
    try:
        return read_captions(path)
    except ValueError as error:
        unread.name(escaped(str(path)), str(error))
        return []


def read_captions(path: Path) -> list[str]:
    """The captions in a caption file: one a line, or in a JSON file a text, an object with one, or a list.

    Raises:
        ValueError: with the reason, if it cannot be read or has no caption.
    """
    text = read_text(path)
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in split_lines(text) if line.strip()]
        if lines and all(BOX.fullmatch(line) for line in lines):
            raise ValueError("boxes or outlines of objects as YOLO has them, not captions")
        return lines
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if isinstance(value, dict):
        value = _caption_in(value)
    entries = value if isinstance(value, list) else [value]
    texts = [_caption_in(entry) if isinstance(entry, dict) else entry for entry in entries]
    return [whole_characters(cell_text(text)) for text in texts if not is_empty(text)]


def _caption_in(values: dict[str, Any]) -> Any:
    found = usual_columns(CAPTION_COLUMNS, list(values))
    if not found:
        raise ValueError(f"no caption in it; its keys are {', '.join(values) or 'none'}")
    return next((values[name] for name in found if not is_empty(values[name])), None)
