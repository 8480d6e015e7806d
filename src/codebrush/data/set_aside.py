"""Folders in which pictures lie that nobody chose to keep there: bins, thumbnails, snapshots, recovered files."""

import re

SET_ASIDE_FOLDERS = frozenset(  # in small letters; of Linux, macOS, Windows, Synology and QNAP
    (
        "trash",
        ".trash",
        ".trashes",
        "$recycle.bin",
        "recycler",
        "recycled",
        "recycle bin",
        "#recycle",
        "@recycle",
        "lost+found",
        "found.000",
        "@eadir",
        "thumbnails",
        ".thumbnails",
        "thumbs",
        ".thumbs",
        ".@__thumb",
        "__macosx",
        "#snapshot",
        "@recently-snapshot",
        "system volume information",
    )
)
USER_BIN = re.compile(r"\.trash-\d+")  # of a user, on a disk that is shared


def is_set_aside(path: str) -> bool:
    """Whether a file lies in one of `SET_ASIDE_FOLDERS`, at any depth."""
    folders = re.split(r"[/\\]", path.lower())[:-1]
    return any(folder in SET_ASIDE_FOLDERS or USER_BIN.fullmatch(folder) for folder in folders)
