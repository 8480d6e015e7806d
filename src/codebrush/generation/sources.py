"""Finds the pictures that another was made from, to make it again: those given with its manifest, or its files.

They are known by their checksums, so a source may have moved, and one that was in memory may come from a file.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from codebrush.data.decoding.images import Picture, decode_image
from codebrush.data.decoding.transparency import opacity
from codebrush.data.masks import white_where_clear
from codebrush.errors import ImageError
from codebrush.files import file_sha256

NAMING = ("edit", "options", "files", "clip_guidance")  # the keys of a manifest under which files are named


@dataclass(frozen=True)
class Sources:
    """The pictures `given` with a manifest, and, if `named`, the files that it names, which are opened then."""

    given: tuple[Picture, ...] = ()
    named: bool = True

    def picture(self, entry: Mapping[str, str], what: str) -> Picture:
        """The picture of an edit's `picture_entry`; `what` it is, "picture" or "mask".

        Raises:
            ImageError: if it is missing or has changed.
        """
        for source in self.given:
            if (found := _reading(source, entry["sha256"], what == "mask")) is not None:
                return found
        if "file" in entry and self.named:
            return Path(self._unchanged(entry["file"], entry["sha256"], "the edit was made"))
        raise self._missing(what, entry.get("file"))

    def file(self, name: str, digest: str | None) -> str:
        """Where the file is that an option of guidance names, whose sha256 is `digest` (None: it was not kept).

        Raises:
            ImageError: if it is missing or has changed.
        """
        for source in self.given:
            if digest is not None and not isinstance(source, Image.Image) and _sha256(source) == digest:
                return str(Path(source).absolute())
        if self.named:
            return name if digest is None else self._unchanged(name, digest, "the run began")
        raise self._missing("file", name)

    def _unchanged(self, name: str, digest: str, since: str) -> str:
        if _sha256(name) != digest:
            raise ImageError(f"{name} has changed since {since}: put the old one back, or give it as a source")
        return name

    def _missing(self, what: str, name: str | None) -> ImageError:
        known = "" if name is None else f", {Path(name).name},"
        if self.given:
            return ImageError(f"none of the sources is the {what}{known} that it was made from: give the very file")
        return ImageError(f"the {what}{known} that it was made from is not part of the manifest: give it as a source")


def _reading(source: Picture, digest: str, mask: bool) -> Picture | None:
    """`source`, or the picture in it, or for a `mask` what its transparency says, whichever has this sha256; None if
    none."""
    if not isinstance(source, Image.Image) and _sha256(source) == digest:
        return source
    picture = decode_image(source, keep_mode=True)
    if mask and opacity(picture) is not None:  # first: over white, a black one with a clear part has the same pixels
        clear = white_where_clear(picture)
        if pixels_sha256(clear) == digest:
            return clear
    return picture if pixels_sha256(picture) == digest else None


def pixels_sha256(picture: Image.Image) -> str:
    """The sha256 (hex) of a picture in memory: of its pixels over white."""
    return hashlib.sha256(decode_image(picture).convert("RGBA").tobytes()).hexdigest()


def named_as_before(made: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest `made` of a replay, which names its files as the one that was replayed."""
    return {**made, **{name: manifest[name] for name in NAMING if name in manifest}}


def _sha256(name: str | Path) -> str:
    try:
        return file_sha256(name)
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
