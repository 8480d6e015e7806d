"""Reads text files: UTF-8 with or without a mark, UTF-16 with its mark; lines end in LF, CRLF or CR."""

import codecs
import re
import stat
from collections.abc import Iterator
from pathlib import Path

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LINE_END = re.compile(r"\r\n|\r|\n")
BROKEN = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as `lines_of` gives them


def decode_text(data: bytes) -> str:
    """The text in `data`. Raises UnicodeDecodeError if it is neither UTF-8 nor UTF-16 with a mark."""
    return data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig")


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
        raise ValueError("not UTF-8 text; save it as UTF-8") from None


def split_lines(text: str) -> list[str]:
    """The lines of a text. Other separators, such as U+2028, belong to the line that they stand in."""
    return LINE_END.split(text)


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file with their ends; bytes that are not UTF-8 become halves of characters (surrogate escapes).

    Raises OSError if it cannot be read, UnicodeDecodeError if it is damaged UTF-16.
    """
    with path.open("rb") as file:
        wide = file.read(2) in UTF16_MARKS
    encoding = "utf-16" if wide else "utf-8-sig"
    with path.open(encoding=encoding, errors="strict" if wide else "surrogateescape", newline="") as lines:
        yield from lines
