"""Tells whether a file is a picture by its first bytes, and names files that are not read when they are counted."""

from pathlib import Path

from codebrush.data.picture_formats import HEAD, is_picture, kind_by_ending


def is_picture_file(path: Path) -> bool:
    """Whether the content of a file is a picture, whatever its name says."""
    try:
        with path.open("rb") as file:
            return is_picture(file.read(HEAD)) is not None
    except OSError:
        return False


def kind_of_file(ending: str) -> str:
    """What a file with this ending, such as .heic, is called when files are counted: "HEIC file (.heic)"."""
    kind = kind_by_ending(ending)
    return f"{kind.name} file ({ending})" if kind else f"{ending} file"
