"""Rules for captions: their length and their script; and how captions are split into words and phrases.

Nothing here detects a language: scripts are taken from the Unicode names of letters, and words are runs of letters and
digits.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from codebrush.errors import UsageError

# The scripts of some languages, as the first word of the Unicode names of their letters. Nearly all letters of a
# caption must be of these scripts; Latin letters other than a to z do not count for English.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "en": ("ASCII",),
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "devanagari": ("DEVANAGARI",),
    "thai": ("THAI",),
    "ko": ("HANGUL",),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
}
SCRIPT_SHARE = 0.9  # of the letters of a caption
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # "don't" is one word


@dataclass(frozen=True)
class CaptionRules:
    """Limits on the words and characters of a caption, and its language (a key of `SCRIPTS`).

    Values out of range raise UsageError.
    """

    min_words: int = 1
    max_words: int | None = None
    max_chars: int | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        for name in ("min_words", "max_words", "max_chars"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UsageError(f"{name.replace('_', '-')} is {value}; it must be 0 or more")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UsageError(f"no caption has {self.min_words} to {self.max_words} words: correct the limits")
        if self.language is not None and self.language not in SCRIPTS:
            raise UsageError(f"the language {self.language} is unknown; known are {', '.join(SCRIPTS)}")

    def fault(self, caption: str) -> str | None:
        """Which rule the caption breaks; None if it breaks none."""
        count = len(_WORD.findall(caption))
        if count < self.min_words:
            return "caption too short"
        if (self.max_words is not None and count > self.max_words) or (
            self.max_chars is not None and len(caption) > self.max_chars
        ):
            return "caption too long"
        if self.language is not None and script_share(caption, self.language) < SCRIPT_SHARE:
            return "caption in another script"
        return None


def script_share(text: str, language: str) -> float:
    """The share (0 to 1) of the letters of `text` that are in the language's scripts; 0 without letters.

    A cheap rule, no language detector: for "en" it is the share of a to z, which Dutch also has.
    """
    wanted = SCRIPTS[language]
    found = [script for char in unicodedata.normalize("NFKC", text) if (script := _script(char))]
    if not found:
        return 0.0
    return sum(script in wanted or (script == "ASCII" and "LATIN" in wanted) for script in found) / len(found)


@cache
def _script(char: str) -> str:
    """The script of a letter; "" for other characters."""
    if not unicodedata.category(char).startswith("L"):
        return ""
    return "ASCII" if char.isascii() else unicodedata.name(char, "OTHER").split()[0]


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and NFKC form."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """A caption reduced to its words, so that spellings of one phrase are equal; unchanged if it has no word."""
    return " ".join(words_of(text)) or text.strip()


def ngrams(words: list[str], longest: int) -> Iterator[str]:
    """Every run of 1 to `longest` words."""
    for length in range(1, longest + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


def read_phrases(lines: Iterable[str]) -> list[str]:
    """Read phrases, one a line, `normalised`, without blank lines, comments (#) and repetitions."""
    found = (line.strip() for line in lines)
    return list(dict.fromkeys(normalised(line) for line in found if line and not line.startswith("#")))
