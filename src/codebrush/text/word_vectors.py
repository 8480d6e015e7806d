"""Vectors of words and short texts from the distilled tables: near for words of similar meaning, without pictures.

The vector of a text is the normalised mean of its words' rows, which are weighted so that rare words count more. A word
that the vocabulary only spells has its row in the table of words; if it is not there either, its pieces' rows stand for
it.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.text.token_table import token_table
from codebrush.text.tokenizer import Tokenizer
from codebrush.text.word_table import WordTable

MOST_WORDS = 50_000  # whose rows are kept
_WORD = re.compile(r"[^\W\d_]+")
_PARTS = re.compile(r"[^\W_]+|[^\w\s]|_")  # words and signs, as the tokenizer splits them first


def word_vectors(texts: Sequence[str]) -> Tensor:
    """Unit vectors (T, 128) of texts, zero for one without known words. Raises PackError if a table is damaged."""
    table = _tables()[0]
    found = [[row for word in _PARTS.findall(text) for row in _rows(word.lower())] for text in texts]
    rows = [torch.stack(each).mean(0) if each else torch.zeros(table.shape[1]) for each in found]
    return F.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, table.shape[1])


def words_in(text: str) -> list[str]:
    """The words of a text in small letters, in their order, without digits and signs."""
    return _WORD.findall(text.lower())


def is_read(word: str) -> bool:
    """Whether a word in small letters is a token, or in the table of words: others are only spelt."""
    return len(_rows(word)) == 1


def reads_the_same(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has the vocabulary of the distilled token table."""
    return tokenizer.vocab_size == _tokenizer().vocab_size


@lru_cache(MOST_WORDS)
def _rows(word: str) -> tuple[Tensor, ...]:
    """The weighted rows (128,) of a word in small letters: one, one for each of its pieces, or none."""
    table, words, tokenizer, rare = _tables()
    ids = [token for token in tokenizer.ids([word])[0] if token != tokenizer.unknown_id]
    whole = words.vector(word) if len(ids) > 1 else None
    if whole is None:
        return tuple(table[token] for token in ids)
    return (F.pad(whole * rare, (0, table.shape[1] - len(whole))),)


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.wordpiece()


@cache
def _tables() -> tuple[Tensor, WordTable, Tokenizer, float]:
    """Both tables, the tokenizer, and the length of a row of a word that is no token: the rarest tokens' on average."""
    table = token_table()
    return table, WordTable(), _tokenizer(), float(table[len(table) // 2 :].norm(dim=1).mean())
