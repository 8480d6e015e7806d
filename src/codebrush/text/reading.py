"""Finds the words of a text that a tokenizer cannot read, and spells those that it could read in another way.

An emoji that is not in the vocabulary is read by its name, and full-width or otherwise compatible letters as plain ones
(Unicode's NFKC). Other words that are unknown, or in a script that the vocabulary hardly has, mean nothing to the text
encoder: they are reported.
"""

import re
import unicodedata
from collections.abc import Sequence

from codebrush.text.pasted import pasted
from codebrush.text.prompts import doubts, parse_prompt
from codebrush.text.scripts import script
from codebrush.text.tokenizer import Tokenizer
from codebrush.warned import warn

REMEDY = "use words of a language that the pack was trained on (the built-in pack: English)"
NAMED = 5  # words that the warning lists
NAME_LENGTH = 30  # letters of each
# So many tokens of several letters (of one, in Chinese writing) show that a vocabulary was made for a script; one in
# fifty tokens is enough. BERT's English vocabulary has 8 Cyrillic tokens and 488 Chinese letters.
ENOUGH_TOKENS = {"CJK": 1000}
USUAL_TOKENS = 300
ENOUGH_SHARE = 0.02
_WORD = re.compile(r"\S+")


def readable(text: str, tokenizer: Tokenizer) -> str:
    """`text` with each word that the tokenizer does not know spelled by its emoji's names and in plain letters, where
    the tokenizer knows those. Texts of plain letters, and vocabularies without an unknown token, stay as they are.
    """
    if tokenizer.unknown_id is None or text.isascii():
        return text
    return _WORD.sub(lambda match: _respelled(match[0], tokenizer), text)


def read_prompt(prompt: str, tokenizer: Tokenizer) -> str:
    """A prompt as it is drawn (see `pasted` and `readable`), with one warning for each thing in it that other programs
    know, for what is doubtful about it (see `doubts`), and for what cannot be read.

    Raises:
        PromptError: if it is no prompt (see `parse_prompt`).
    """
    prompt, foreign = pasted(prompt)
    for line in foreign:
        warn(line)
    parse_prompt(prompt)  # refuses one that cannot be read
    for doubt in doubts(prompt):
        warn(doubt)
    read = readable(prompt, tokenizer)
    warn_unread([read], tokenizer)
    return read


def unread(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The words of texts that the tokenizer does not know, or spells in letters of a script it was not made for, in
    their order and each once.
    """
    words = dict.fromkeys(word for text in texts for word in _WORD.findall(readable(text, tokenizer)))
    return [word for word in words if _unknown(word, tokenizer) or _foreign(word, tokenizer)]


def is_unreadable(text: str, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer reads nothing of a text: it has words that cannot be read (see `unread`), and the others
    hold only punctuation.
    """
    lost = set(unread([text], tokenizer))
    others = [word for word in _WORD.findall(readable(text, tokenizer)) if word not in lost]
    return bool(lost) and all(unicodedata.category(letter)[0] == "P" for word in others for letter in word)


def named_texts(texts: Sequence[str]) -> str:
    """The first of the texts or words in quotes, each cut to a few letters, and how many more there are."""
    shown = ", ".join(f'"{text[:NAME_LENGTH]}"' for text in texts[:NAMED])
    return shown + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")


def warn_unread(texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """One warning that names the words which the tokenizer cannot read, if there are any."""
    words = unread(texts, tokenizer)
    if not words:
        return
    counts = "it counts" if len(words) == 1 else "they count"
    warn(f"the pack cannot read {named_texts(words)}, so {counts} for nothing: {REMEDY}")


def _respelled(word: str, tokenizer: Tokenizer) -> str:
    unknown = _unknown(word, tokenizer)
    if not unknown:
        return word
    import emoji

    named = emoji.demojize(word, delimiters=("\0", "\0"))
    named = re.sub("\0([^\0]*)\0", lambda match: f" {re.sub('[_:|]', ' ', match[1])} ", named)
    plain = " ".join("".join(map(_plain, unicodedata.normalize("NFC", named))).split())
    return plain if plain and _unknown(plain, tokenizer) < unknown else word


def _plain(letter: str) -> str:
    """A letter in its compatible form; a colon, bar or backslash that only now appears would be syntax: a space."""
    return letter if letter.isascii() else re.sub(r"[:|\\]", " ", unicodedata.normalize("NFKC", letter))


def _unknown(text: str, tokenizer: Tokenizer) -> int:
    """How many tokens of a text are the unknown one."""
    return 0 if tokenizer.unknown_id is None else tokenizer.ids([text])[0].count(tokenizer.unknown_id)


def _foreign(word: str, tokenizer: Tokenizer) -> bool:
    """Whether a word has letters of a script for which the vocabulary has hardly any tokens."""
    if word.isascii():
        return False
    scripts = {script(letter) for letter in word if letter.isalpha()} - {"LATIN", ""}
    counts, least = tokenizer.script_counts, ENOUGH_SHARE * tokenizer.vocab_size
    return any(counts.get(each, 0) < min(ENOUGH_TOKENS.get(each, USUAL_TOKENS), least) for each in scripts)
