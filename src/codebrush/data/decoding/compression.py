"""Tells by the content of a picture file whether its compression has lost something of the picture.

Of two files with as many pixels the lossless one is the original, whatever their endings say.
"""

import re
from io import BytesIO

from PIL import Image

from codebrush.data.decoding.picture_formats import HEAD, readable_format

PARAMETERS = 65_536  # bytes from the start of an AVIF or JPEG 2000 file in which its parameters stand
LOSSY_TIFF = (6, 7, 34712, 50001, 50002, 52546, 34892)  # values of the tag Compression: JPEG, JPEG 2000, WebP, JPEG XL


def is_lossy(data: bytes) -> bool:
    """Whether a picture file is compressed with loss: JPEG, and WebP, AVIF, HEIC, JPEG 2000 and TIFF where they are."""
    name = readable_format(data[:HEAD])
    if name == "WEBP":
        return b"VP8 " in _webp_chunks(data)
    if name == "AVIF":
        # Lossless AVIF stores the colours as they are: matrix 0 in its colour box "nclx".
        matrix = re.search(rb"nclx....(..)", data[:PARAMETERS], re.DOTALL)
        return matrix is None or matrix[1] != b"\x00\x00"
    if name == "JPEG2000":
        return not _is_reversible(data[:PARAMETERS])
    if name == "TIFF":
        return _tiff_compression(data) in LOSSY_TIFF
    return name in ("JPEG", "HEIC")


def jpeg2000_levels(data: bytes) -> int:
    """How often a JPEG 2000 file can be halved while it is decoded; 0 if that is not known."""
    coding = _coding_of_jpeg2000(data)
    return 0 if coding is None else coding[5]


def _is_reversible(data: bytes) -> bool:
    coding = _coding_of_jpeg2000(data)
    return coding is not None and coding[9] == 1


def _coding_of_jpeg2000(data: bytes) -> bytes | None:
    """The 10 bytes of the marker segment COD after its length: [5] is the number of levels, [9] the transform."""
    start = data.find(b"\xff\x4f\xff\x51")
    place = data.find(b"\xff\x52\x00", start) if start >= 0 else -1
    coding = data[place + 4 : place + 14]
    return coding if place >= 0 and len(coding) == 10 else None


def _webp_chunks(data: bytes) -> set[bytes]:
    """The names of the chunks of a WebP file, with those inside the frames of an animation."""
    names, place = set[bytes](), 12
    while place + 8 <= len(data):
        name, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        names.add(name)
        # The parameters of a frame take 16 bytes; then come its chunks.
        place += 24 if name == b"ANMF" else 8 + length + length % 2
    return names


def _tiff_compression(data: bytes) -> int | None:
    try:
        with Image.open(BytesIO(data), formats=("TIFF",)) as image:
            return getattr(image, "tag_v2", {}).get(259)
    except MemoryError:
        raise
    except Exception:  # damaged files make the parser raise nearly anything
        return None
