"""Reads text files: UTF-8 with or without a mark, UTF-16 and UTF-32 with theirs; lines end in LF, CRLF or CR."""

import codecs
import re
import stat
from collections.abc import Iterator
from pathlib import Path

MARKS = {  # of UTF-32 first: one of its marks begins like one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LINE_END = re.compile(r"\r\n|\r|\n")
# What text does not hold: bytes that are not UTF-8, as `lines_of` gives them, and the zeros of UTF-16 without a mark.
BROKEN = re.compile("[\0\udc80-\udcff]")
NOT_TEXT = "not UTF-8 text; save it as UTF-8"


def decode_text(data: bytes) -> str:
    """The text in `data`. Raises UnicodeDecodeError if it is neither UTF-8 nor UTF-16 or UTF-32 with a mark."""
    encoding = _encoding(data)
    text = data.decode(encoding)
    if "\0" in text:
        place = data.index(0)
        raise UnicodeDecodeError(encoding, data, place, place + 1, "text holds no zeros")
    return text


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), "utf-8-sig")


def read_text(path: Path) -> str:
    """The text in a file.

    Raises:
        ValueError: with the reason, if it is not a file, cannot be read, or is text in another encoding.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a file")  # a pipe would never end
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from error
    except UnicodeDecodeError:
        raise ValueError(NOT_TEXT) from None


def split_lines(text: str) -> list[str]:
    """The lines of a text. Other separators, such as U+2028, belong to the line that they stand in."""
    return LINE_END.split(text)


def is_tabbed(path: Path) -> bool:
    """Whether the first line of a .txt file has tabs, as in a table that Excel saved as "Unicode text"."""
    try:
        return path.suffix.lower() == ".txt" and "\t" in next(lines_of(path), "")
    except (OSError, ValueError):
        return False


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file with their ends; bytes that are not UTF-8 become halves of characters (surrogate escapes).

    Raises OSError if it cannot be read, UnicodeDecodeError if it is damaged UTF-16 or UTF-32.
    """
    with path.open("rb") as file:
        encoding = _encoding(file.read(4))
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    with path.open(encoding=encoding, errors=errors, newline="") as lines:
        yield from lines
