"""The picture formats that are read, recognised by their first bytes, and the kinds of files that are not.

The ending of a file counts only where its content says nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

HEAD = 512  # bytes that `readable_format` and `unread_kind` look at
Image.init()  # Image.OPEN holds loaded plug-ins only
WANTED_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM", "JPEG2000", "PSD", "QOI", "DIB")
FORMATS = tuple(name for name in WANTED_FORMATS if name in Image.OPEN)  # AVIF is missing in some builds
READS_HEIC, READS_RAW = (find_spec(package) is not None for package in ("pillow_heif", "rawpy"))
RAW_ENDINGS = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".3fr", ".iiq", ".erf", ".mrw", ".x3f", ".rwl", ".kdc", ".dcr", ".mos", ".gpr"),
)
ENDINGS: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "ICO": (".ico",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "DIB": (".dib",),
    "HEIC": (".heic", ".heif", ".hif"),
    "RAW": RAW_ENDINGS,
}
READ = (*FORMATS, *(("HEIC",) if READS_HEIC else ()), *(("RAW",) if READS_RAW else ()))  # names `readable_format` gives
EXTENSIONS = frozenset(ending for name in (*WANTED_FORMATS, *READ) for ending in ENDINGS[name])

PHOTOS = 'pip install "codebrush[photos]"'
NEWER_PILLOW = "pip install -U Pillow"
_TO_PNG = "export it as PNG"


@dataclass(frozen=True)
class Kind:
    """A kind of file that is recognised and not read: its name, as in "HEIC file", and what to do about it."""

    name: str
    remedy: str


HEIC = Kind("HEIC", f"needs pillow-heif: {PHOTOS}")
RAW = Kind("camera RAW", f"needs rawpy: {PHOTOS}, or export it as JPEG")
AVIF = Kind("AVIF", f"this build of Pillow cannot read it: {NEWER_PILLOW}")
JXL = Kind("JPEG XL", "convert it to PNG or JPEG, for instance with djxl")
VIDEO = Kind("video", "save the frames that count as pictures, for instance with ffmpeg")
SVG = Kind("SVG", _TO_PNG)
PDF = Kind("PDF", "export its pages as PNG")
POSTSCRIPT = Kind("PostScript", _TO_PNG)
TEXTURE = Kind("texture or HDR", "convert it to PNG or JPEG")
PROJECT = Kind("drawing program", _TO_PNG)
SCIENCE = Kind("scientific or medical", "export it as PNG with 8 bits a channel")
ODD = Kind("rare format", "convert it to PNG")
SPREADSHEET = Kind("spreadsheet", 'save its table as "CSV UTF-8"')
WEB_PAGE = Kind("web page", "the download went wrong: fetch the picture itself")
LFS = Kind("Git LFS pointer", "fetch the file itself: git lfs pull")

NOT_READ: dict[Kind, tuple[str, ...]] = {  # with the endings by which they are known
    **({} if READS_HEIC else {HEIC: ENDINGS["HEIC"]}),
    **({} if READS_RAW else {RAW: ENDINGS["RAW"]}),
    **({} if "AVIF" in FORMATS else {AVIF: ENDINGS["AVIF"]}),
    JXL: (".jxl",),
    VIDEO: (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".3gp", ".mts", ".m2ts", ".flv"),
    SVG: (".svg", ".svgz"),
    PDF: (".pdf",),
    POSTSCRIPT: (".eps", ".ps", ".ai"),
    TEXTURE: (".dds", ".exr", ".hdr", ".ktx", ".ktx2", ".tga"),
    PROJECT: (".xcf", ".psb", ".kra", ".procreate", ".clip", ".afphoto", ".sketch"),
    SCIENCE: (".fits", ".fit", ".dcm", ".nii", ".czi", ".nd2"),
    ODD: (".pcx", ".sgi", ".xbm", ".xpm", ".wmf", ".emf", ".icns", ".cur", ".fli", ".flc", ".jxr", ".bpg"),
    SPREADSHEET: (".xlsx", ".xlsm", ".xls", ".ods", ".numbers"),
    WEB_PAGE: (".html", ".htm"),
}
_INSTALLED_BY = {HEIC: PHOTOS, RAW: PHOTOS, AVIF: NEWER_PILLOW}
_KIND_OF = {ending: kind for kind, endings in NOT_READ.items() for ending in endings}

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"FUJIFILMCCD-RAW", "RAW"),
    (b"IIRO", "RAW"),  # Olympus
    (b"IIRS", "RAW"),
    (b"MMOR", "RAW"),
    (b"IIU\x00", "RAW"),  # Panasonic
    (b"FOVb", "RAW"),  # Sigma
    (b"\x00MRM", "RAW"),  # Minolta
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"8BPS\x00\x01", "PSD"),
    (b"qoif", "QOI"),
)
_UNREAD_STARTS = (
    (b"\xff\x0a", JXL),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", JXL),
    (b"\x1aE\xdf\xa3", VIDEO),  # Matroska and WebM
    (b"\x00\x00\x01\xba", VIDEO),
    (b"\x00\x00\x01\xb3", VIDEO),
    (b"FLV\x01", VIDEO),
    (b"0&\xb2u\x8ef\xcf\x11", VIDEO),  # WMV
    (b"%PDF", PDF),
    (b"%!PS", POSTSCRIPT),
    (b"\xc5\xd0\xd3\xc6", POSTSCRIPT),
    (b"DDS ", TEXTURE),
    (b"v/1\x01", TEXTURE),
    (b"#?RADIANCE", TEXTURE),
    (b"#?RGBE", TEXTURE),
    (b"\xabKTX ", TEXTURE),
    (b"gimp xcf", PROJECT),
    (b"8BPS\x00\x02", PROJECT),
    (b"SIMPLE  =", SCIENCE),
    (b"icns", ODD),
    (b"\x00\x00\x02\x00", ODD),  # a cursor
    (b"II\xbc", ODD),  # JPEG XR
    (b"version https://git-lfs", LFS),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
_VIDEO_BRANDS = (b"isom", b"iso", b"mp4", b"qt  ", b"M4V", b"3gp", b"avc1", b"dash", b"MSNV")
_DIB_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # their lengths


def readable_format(head: bytes) -> str | None:
    """The format of a picture file by its first `HEAD` bytes, one of `READ`; None if it is none of them.

    Camera RAW that is written as TIFF (DNG, NEF, ARW ...) is "TIFF" here, or "RAW" where the first bytes tell.
    """
    name = picture_format(head)
    return name if name in READ else None


def is_picture_file(path: Path) -> bool:
    """Whether the content of a file is a picture, whatever its name says."""
    return readable_format(_head(path)) is not None


def _head(path: Path) -> bytes:
    """The first `HEAD` bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def unread_kind(head: bytes, ending: str = "") -> Kind | None:
    """The kind of a file that cannot be read as a picture, by its first `HEAD` bytes, or else by its ending (".mp4").

    None if it can be, or if its kind is unknown.
    """
    name = picture_format(head)
    if name is not None:
        return None if name in READ else {"HEIC": HEIC, "RAW": RAW, "AVIF": AVIF}.get(name)
    for start, kind in _UNREAD_STARTS:
        if head.startswith(start):
            return kind
    if head[4:8] == b"ftyp" and head[8:12].startswith(_VIDEO_BRANDS):
        return VIDEO
    if head[4:8] in (b"moov", b"mdat", b"wide") or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return VIDEO
    if head[128:132] == b"DICM":
        return SCIENCE
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.match(rb"(<\?xml.*?|<!--.*?|<!doctype svg.*?)*<svg[\s>]", text, re.DOTALL):
        return SVG
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return WEB_PAGE
    return kind_by_ending(ending)


def kind_by_ending(ending: str) -> Kind | None:
    """The kind of a file that is not read, by an ending such as .mp4; None if that names none."""
    return _KIND_OF.get(ending.lower())


def kind_of_file(path: Path) -> str:
    """What an unread file is called in counts: "HEIC file (.heic)"; without an ending its content is looked at."""
    ending = path.suffix.lower()
    kind = kind_by_ending(ending) if ending else unread_kind(_head(path))
    if kind is None:
        return f"{ending} file" if ending else "file without an ending"
    return f"{kind.name} file ({ending})" if ending else f"{kind.name} file without an ending"


def remedies(counted: Iterable[str]) -> list[str]:
    """What to do to read the `counted` kinds, each as `kind_of_file` calls it or with an ending at its end.

    Web pages are left out: in a folder they are mostly no pictures that went wrong.
    """
    needed: dict[str, list[str]] = {}
    for kind, endings in NOT_READ.items():
        if kind != WEB_PAGE and any(each.startswith(f"{kind.name} file") or each.endswith(endings) for each in counted):
            needed.setdefault(_INSTALLED_BY.get(kind, kind.remedy), []).append(kind.name)
    return [f"for {' and '.join(names)}: {remedy}" for remedy, names in needed.items()]


def picture_format(head: bytes) -> str | None:
    """Like `readable_format`, also for formats that are not read for want of a package."""
    for start, name in _STARTS:
        if head.startswith(start):
            return "RAW" if name == "TIFF" and head[8:10] == b"CR" else name  # Canon
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    number = int.from_bytes(head[14:18], "little")
    if head[:2] == b"BM" and number in _DIB_HEADERS:
        return "BMP"
    if re.match(rb"P([1-6][\s#]|[fF]\s)", head):
        return "PPM"
    if head[:4] == b"\x00\x00\x01\x00" and 0 < int.from_bytes(head[4:6], "little") < 256 and head[9:10] == b"\x00":
        return "ICO"
    planes, bits = head[12:14], int.from_bytes(head[14:16], "little")
    is_dib = int.from_bytes(head[:4], "little") in _DIB_HEADERS[1:] and len(head) >= 40
    return "DIB" if is_dib and planes == b"\x01\x00" and bits in (1, 4, 8, 16, 24, 32) else None


def _by_brand(head: bytes) -> str | None:
    """The format of an ISO base media file, by its main brand and then by the others."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[place : place + 4] for place in (8, *range(16, length - 3, 4))]
    if brands[0] == b"crx ":
        return "RAW"
    if brands[0].startswith(_VIDEO_BRANDS):
        return None
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIC" if any(brand in _HEIC_BRANDS for brand in brands) else None
