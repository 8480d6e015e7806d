"""Cleans a text as OpenAI's CLIP does before it splits the text into tokens.

The published CLIPs were trained on captions cleaned in this way (Radford et al. 2021, and its code): ftfy repairs wrong
encodings, HTML entities are resolved twice, runs of white space become one space, and letters become lower case.
"""

import html
import re
import unicodedata

_SPACES = re.compile(r"\s+")


def clean_openai(text: str) -> str:
    """`text` as OpenAI's tokenizer splits it into words."""
    return _SPACES.sub(" ", html.unescape(html.unescape(_repaired(text))).strip()).strip().lower()


def split_specials(text: str, specials: tuple[str, ...]) -> list[str]:
    """A cleaned text split before and after each of the special tokens that OpenAI's tokenizer finds in it.

    It finds one only where a new word may begin: not inside a run of punctuation, so `!<|endoftext|>` is text.
    """
    parts, start = [], 0
    for match in re.finditer("|".join(map(re.escape, specials)), text):
        if match.start() > start and not _ends_word(text[match.start() - 1]):
            continue
        parts += [text[start : match.start()], match.group()]
        start = match.end()
    return [part for part in (*parts, text[start:]) if part]


def _ends_word(letter: str) -> bool:
    # U+0345 is a mark whose upper case is a letter; OpenAI's pattern, which ignores case, counts it as neither.
    return unicodedata.category(letter)[0] in "LNZ" or letter == "\u0345"


def _repaired(text: str) -> str:
    # ftfy leaves plain text as it is, but takes ten times as long as all the rest to find out.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return ftfy.fix_text(text)
