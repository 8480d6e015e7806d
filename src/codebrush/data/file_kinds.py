"""Tells picture files by their first bytes, and names kinds of files that are not pictures by their ending."""

from pathlib import Path

HEAD = 32  # bytes that `picture_format` wants
STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}
KINDS = {
    "video": (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".3gp"),
    "camera RAW": (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    "HEIC": (".heic", ".heif"),
    "JPEG XL": (".jxl",),
}
KIND_OF = {ending: kind for kind, endings in KINDS.items() for ending in endings}


def picture_format(head: bytes) -> str | None:
    """The format of a picture that begins with `head`, None if these are no bytes of a picture that can be read."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head[:2] == b"BM" and head[6:10] == bytes(4) and len(head) >= 26:
        return "BMP"
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and head[2:3].isspace():
        return "PPM"
    return next((name for start, name in STARTS.items() if head.startswith(start)), None)


def is_picture_file(path: Path) -> bool:
    """Whether the content of a file is a picture, whatever its name says."""
    try:
        with path.open("rb") as file:
            return picture_format(file.read(HEAD)) is not None
    except OSError:
        return False


def kind_of_file(ending: str) -> str:
    """What a file with this ending, such as .heic, is called when files are counted: "HEIC file (.heic)"."""
    kind = KIND_OF.get(ending)
    return f"{kind} file ({ending})" if kind else f"{ending} file"
