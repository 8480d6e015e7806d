"""Folders whose pictures nobody chose to keep there: bins, thumbnails, snapshots and recovered files."""

import re

SYSTEM_FOLDERS = frozenset(  # in small letters; made by Windows, macOS, Synology and QNAP alone, so never read
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
BIN_AND_THUMBNAIL_FOLDERS = SYSTEM_FOLDERS | frozenset(  # read, as people give these names to other folders too
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


def is_in_bin_or_thumbnails(path: str) -> bool:
    """Whether a file lies in one of `BIN_AND_THUMBNAIL_FOLDERS`, at any depth."""
    folders = re.split(r"[/\\]", path.lower())[:-1]
    return any(folder in BIN_AND_THUMBNAIL_FOLDERS or USER_BIN.fullmatch(folder) for folder in folders)
