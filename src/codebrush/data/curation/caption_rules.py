"""Captions in; the rule that one breaks, or its words and phrases, out.

Nothing here knows a language: scripts are told from the names that Unicode gives to letters, and words are runs of
letters and digits.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from codebrush.errors import UsageError

# The scripts of some languages, as the first word of the Unicode names of their letters. A caption counts as of a
# language when most of its letters are of its scripts; Latin letters beyond a to z do not count for English.
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
SCRIPT_SHARE = 0.9
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # don't is one word


@dataclass(frozen=True)
class CaptionRules:
    """What a caption must be like: numbers of words and characters, and a key of `SCRIPTS`."""

    min_words: int = 1
    max_words: int | None = None
    max_chars: int | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        for name in ("min_words", "max_words", "max_chars"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UsageError(f"{name.replace('_', '-')} is {value}; it must be 0 or more")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UsageError(f"captions of {self.min_words} to {self.max_words} words do not exist: mend the limits")
        if self.language is not None and self.language not in SCRIPTS:
            raise UsageError(f"the language {self.language} is not known; there are {', '.join(SCRIPTS)}")

    def fault(self, caption: str) -> str | None:
        """Which rule the caption breaks; None where it is in order."""
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
    """The share (0 to 1) of the letters of `text` that are of the language's scripts; 0 without any letter.

    A cheap rule, not a language detector: for "en" it is the share of a to z, which Dutch also has.
    """
    wanted = SCRIPTS[language]
    found = [script for char in unicodedata.normalize("NFKC", text) if (script := _script(char))]
    if not found:
        return 0.0
    return sum(script in wanted or (script == "ASCII" and "LATIN" in wanted) for script in found) / len(found)


@cache
def _script(char: str) -> str:
    """The script of a letter; "" for what is no letter."""
    if not unicodedata.category(char).startswith("L"):
        return ""
    return "ASCII" if char.isascii() else unicodedata.name(char, "OTHER").split()[0]


def words_of(text: str) -> list[str]:
    """The words of a text: compatibility forms and capitals made plain."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """A caption as its words alone, so that spellings of one phrase are equal; itself where it has no word."""
    return " ".join(words_of(text)) or text.strip()


def ngrams(words: list[str], longest: int) -> Iterator[str]:
    """Every run of 1 to `longest` words."""
    for length in range(1, longest + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


def read_phrases(lines: Iterable[str]) -> list[str]:
    """Phrases, one a line, each as `normalised` has it; blank lines, comments (#) and repetitions left out."""
    found = (line.strip() for line in lines)
    return list(dict.fromkeys(normalised(line) for line in found if line and not line.startswith("#")))
