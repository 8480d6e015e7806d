"""Fits text into a width in pixels: breaks it into lines, and cuts what is too long.

Lines break between words, and between letters in scripts written without blanks (Chinese, Japanese, Thai, ...).
"""

import re
import unicodedata

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

LETTERS_A_PIXEL = 4  # more of a line than that, measured in one go, is never looked at: marks may have no width
# Letters that a line may be broken before and after: those of scripts of South-East Asia written without blanks. Those
# of East Asia are told by their width.
_UNSPACED = re.compile("[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\ua9e0-\ua9ff\uaa60-\uaadf]")
_JOINER = "\u200d"


def wrapped(text: str, font: Font, width: int, most: int | None = None) -> list[str]:
    """Break `text` into lines of at most `width` pixels; a word that is longer is cut by `cut`.

    With `most` there are at most that many lines, of which the last is cut. What lies beyond them is not measured.
    """
    lines = [""]
    for word in text.encode("utf-8", "replace").decode("utf-8").split():
        blank = " "
        for piece in _pieces(word):
            longer = f"{lines[-1]}{blank}{piece}" if lines[-1] else piece
            if not lines[-1] or font.getlength(longer[: LETTERS_A_PIXEL * width]) <= width:
                lines[-1] = longer
            elif len(lines) == most:
                return [*(cut(line, font, width) for line in lines[:-1]), cut(longer, font, width)]
            else:
                lines.append(piece)
            blank = ""
    return [cut(line, font, width) for line in lines]


def cut(line: str, font: Font, width: int) -> str:
    """`line`, or as much of its beginning as fits into `width` pixels with an ellipsis behind it."""
    start = line[: LETTERS_A_PIXEL * width]
    if start == line and font.getlength(line) <= width:
        return line
    low, high = 0, len(start)  # a beginning of `high` letters may fit; one of twice the width does not
    while high - low > 1 and font.getlength(start[: (low + high) // 2]) > 2 * width:
        high = (low + high) // 2
    start = start[:high]
    while start and font.getlength(start + "...") > width:
        start = start[:-1]
    return start.rstrip() + "..."


def _pieces(word: str) -> list[str]:
    """A word in the pieces between which a line may break: letters of scripts without blanks, runs of all others."""
    if word.isascii():
        return [word]
    pieces = [""]
    for letter in word:
        before = pieces[-1][-1:]
        stays = unicodedata.category(letter)[0] == "M" or unicodedata.category(letter) in ("Cf", "Sk")
        if before and not stays and before != _JOINER and (_is_unspaced(before) or _is_unspaced(letter)):
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces


def _is_unspaced(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF" or _UNSPACED.match(letter) is not None
