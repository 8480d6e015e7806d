"""Names of files as text: bytes that are not UTF-8 are written as \\xe9; accents compare equal in any form.

Linux lets a file name hold any bytes, macOS splits an accent from its letter (NFD), and tables mostly hold both in one
character (NFC).
"""

import os
import re
import stat
import unicodedata
from pathlib import Path

ESCAPED = re.compile(r"\\x([89a-f][0-9a-f])")


def escaped(name: str) -> str:
    """A name with its bytes that are not UTF-8 as \\xe9, fit for tables, databases and terminals."""
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", name)


def unescaped(text: str) -> str:
    """The name that `escaped` made `text` of."""
    return ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)), text)


def existing(path: Path) -> Path:
    """`path`, or the file of which `path` is the escaped name, or the same name with its accents in the other form."""
    if os.path.lexists(path):
        return path
    text = str(path)
    for form in (unescaped(text), *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))):
        if form != text and os.path.lexists(form):
            return Path(form)
    return path


def read_file(path: Path) -> bytes:
    """The content of the file at `path`, or of the one that `existing` finds.

    Raises:
        OSError: if it cannot be read, or is a folder, pipe, socket or device, which might never end.
    """
    path = existing(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a file")
    return path.read_bytes()


def comparable(name: str) -> str:
    """A name with composed accents (NFC), as that by which a picture and its caption are brought together."""
    return unicodedata.normalize("NFC", name)
