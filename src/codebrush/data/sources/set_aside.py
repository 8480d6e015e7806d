"""Folders in which pictures lie that nobody chose to keep there: bins, thumbnails, snapshots, recovered files."""

import re

SYSTEM_FOLDERS = frozenset(  # in small letters; of Windows, macOS, Synology and QNAP, which nobody else makes
    (
        "$recycle.bin",
        "#recycle",
        "@recycle",
        "lost+found",
        "@eadir",
        "__macosx",
        "#snapshot",
        "@recently-snapshot",
        "system volume information",
    )
)
SET_ASIDE_FOLDERS = SYSTEM_FOLDERS | frozenset(  # and those whose names people may give to other folders too
    (
        "trash",
        ".trash",
        ".trashes",
        "recycler",
        "recycled",
        "recycle bin",
        "found.000",
        "thumbnails",
        ".thumbnails",
        "thumbs",
        ".thumbs",
        ".@__thumb",
    )
)
USER_BIN = re.compile(r"\.trash-\d+")  # of a user, on a disk that is shared


def is_set_aside(path: str) -> bool:
    """Whether a file lies in one of `SET_ASIDE_FOLDERS`, at any depth."""
    folders = re.split(r"[/\\]", path.lower())[:-1]
    return any(folder in SET_ASIDE_FOLDERS or USER_BIN.fullmatch(folder) for folder in folders)
