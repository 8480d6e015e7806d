"""Chooses fonts for captions in any script, among the built-in one and those installed, and orders right-to-left text.

Nothing is downloaded: a warning says how many letters no installed font has.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageFont, features

from codebrush.files import from_home
from codebrush.warned import warn

FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
# Families with many scripts first, then those of one script, by the beginnings of their files' names.
FAMILIES = (
    *("notosanscjk", "notosans-regular", "dejavusans.", "arialuni", "arial unicode", "droidsansfallback", "wqy"),
    *("pingfang", "hiragino", "msyh", "yugoth", "meiryo", "malgun", "segoeui.", "arial.", "tahoma", "nirmala"),
    *("leelawui", "notosans", "notonaskh", "freesans.", "unifont"),
)
ENDINGS = (".ttf", ".ttc", ".otf")
LOOKED_AT = 500  # letters of a caption: more are never drawn
REMEDY = (
    "install fonts that have them (Debian and Ubuntu: fonts-noto-cjk for Chinese, Japanese and Korean, else "
    "fonts-noto-core)"
)
UNASSIGNED = "\U0010fffd"  # in no font, so it is drawn as a missing letter is
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
RIGHT_TO_LEFT = ("R", "AL")  # Unicode's directions of Hebrew and Arabic letters, and of those like them
STYLES = ("bold", "black", "italic", "oblique", "light", "thin")


def fonts_for(texts: Sequence[str], size: int) -> list[Font]:
    """For each text the font of `size` pixels that has most of its letters; the built-in one where it has all.

    Warns once of letters that are in no font.
    """
    plain = ImageFont.load_default(size=size)
    chosen, lost, incomplete = list[Font](), set[str](), 0
    for text in texts:
        best, missing = plain, missing_letters(plain, text)
        for file in _font_files() if missing else ():
            font = _opened(file, size)
            left = missing if font is None else missing_letters(font, text)
            if font is not None and len(left) < len(missing):
                best, missing = font, left
            if not missing:
                break
        chosen.append(best)
        lost |= missing
        incomplete += bool(missing)
    if lost:
        letters, captions = (
            f"{n} {noun}{'s' * (n > 1)}" for n, noun in ((len(lost), "letter"), (incomplete, "caption"))
        )
        warn(f"{letters} of {captions} drawn as boxes, as no font that was found has them: {REMEDY}")
    return chosen


def missing_letters(font: Font, text: str) -> set[str]:
    """The letters of a text that a font draws as missing; marks and formatting characters are not looked at."""
    if text.isascii():
        return set()
    box = _ink(font, UNASSIGNED)
    letters = {letter for letter in text[:LOOKED_AT] if not letter.isascii()}
    return {letter for letter in letters if unicodedata.category(letter)[0] in "LNPS" and _ink(font, letter) == box}


def visual_order(line: str) -> str:
    """A line in the order in which its letters are drawn from the left: itself where the text engine orders them
    (Pillow with libraqm). Else a plain rule: if its first letter is of a right-to-left script, its words go from right
    to left, and so do the letters of those in such a script. Arabic letters are then not joined.
    """
    if features.check("raqm"):
        return line
    first = next((each for each in map(unicodedata.bidirectional, line) if each in ("L", *RIGHT_TO_LEFT)), "L")
    if first not in RIGHT_TO_LEFT:
        return line
    runs = [(is_turned, list(words)) for is_turned, words in groupby(line.split(" "), _has_right_to_left)]
    parts = [[word[::-1] for word in reversed(words)] if is_turned else words for is_turned, words in reversed(runs)]
    return " ".join(word for part in parts for word in part)


def _has_right_to_left(word: str) -> bool:
    return any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in word)


@lru_cache
def _font_files() -> tuple[Path, ...]:
    """The installed fonts of the known families, in their order."""
    found = []
    for folder in map(from_home, FONT_FOLDERS):
        for file in sorted(Path(folder).rglob("*")):
            name = file.name.lower()
            rank = next((rank for rank, family in enumerate(FAMILIES) if name.startswith(family)), None)
            if rank is not None and name.endswith(ENDINGS):
                found.append((rank, any(style in name for style in STYLES), file))
    return tuple(file for *_, file in sorted(found))


@lru_cache(maxsize=64)
def _opened(file: Path, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(file), size)
    except OSError:  # a damaged file, or one of bitmaps
        return None


def _ink(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)  # pyright: ignore[reportArgumentType]
