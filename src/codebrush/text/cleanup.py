"""A text as people write it in; the text that OpenAI's CLIP makes of it before splitting it into tokens out.

The published CLIPs saw their captions so (Radford et al. 2021, and its code): wrong encodings mended by ftfy, HTML
entities resolved twice, runs of white space made one space, lower case.
"""

import html
import re
import unicodedata

_SPACES = re.compile(r"\s+")


def clean_openai(text: str) -> str:
    """The text that OpenAI's tokenizer splits into words."""
    return _SPACES.sub(" ", html.unescape(html.unescape(_mend(text))).strip()).strip().lower()


def split_specials(text: str, specials: tuple[str, ...]) -> list[str]:
    """A cleaned text cut before and after each of the special tokens that OpenAI's tokenizer finds in it.

    It finds one where a word of its own may begin: not inside a run of punctuation, so `!<|endoftext|>` is text.
    """
    parts, start = [], 0
    for match in re.finditer("|".join(map(re.escape, specials)), text):
        if match.start() > start and not _ends_word(text[match.start() - 1]):
            continue
        parts += [text[start : match.start()], match.group()]
        start = match.end()
    return [part for part in (*parts, text[start:]) if part]


def _ends_word(letter: str) -> bool:
    # U+0345 is a mark whose upper case is a letter; OpenAI's pattern, blind to case, takes it for neither.
    return unicodedata.category(letter)[0] in "LNZ" or letter == "\u0345"


def _mend(text: str) -> str:
    # ftfy leaves plain words as they are, and takes ten times as long to say so as all the rest.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return ftfy.fix_text(text)
