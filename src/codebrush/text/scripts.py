"""Counts the tokens of a vocabulary by the script in which they are written."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from tokenizers import pre_tokenizers

_MARKS = ("##", "▁", "Ġ", "</w>")


def script(letter: str) -> str:
    """The script of a letter by its Unicode name, like "LATIN" and "THAI"; Chinese characters are "CJK", hiragana
    and katakana "KANA". Letters that are variants of Latin ones, like full-width ones, are "LATIN".
    """
    name = unicodedata.name(letter, "").split(" ", 1)[0].split("-", 1)[0]
    if name in ("HIRAGANA", "KATAKANA", "HALFWIDTH"):
        return "KANA"
    return "LATIN" if name in ("FULLWIDTH", "MODIFIER", "MICRO", "FEMININE", "MASCULINE", "DOUBLE") else name


def script_counts(tokens: Iterable[str], byte_level: bool) -> Counter[str]:
    """How many tokens consist of several letters of each script; in Chinese writing one letter is enough.

    `byte_level`: the tokens spell bytes with GPT-2's letters.
    """
    counts: Counter[str] = Counter()
    letters = _bytes() if byte_level else {}
    for token in tokens:
        for mark in _MARKS:
            token = token.removeprefix(mark).removesuffix(mark)
        if byte_level:
            token = bytes(letters[each] for each in token if each in letters).decode("utf-8", "ignore")
        if token.isalpha() and not token.isascii():
            scripts = {script(letter) for letter in token}
            if len(scripts) == 1 and (len(token) > 1 or "CJK" in scripts):
                counts[scripts.pop()] += 1
    return counts


def _bytes() -> dict[str, int]:
    """The letter with which byte-level vocabularies write each byte -> the byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert letters.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return letters
