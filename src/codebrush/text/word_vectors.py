"""Vectors of words and short texts from the distilled token table: near for words of similar meaning, without pictures.

The vector of a text is the normalised mean of its tokens' rows, which are weighted so that rare tokens count more.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.text.token_table import token_table
from codebrush.text.tokenizer import Tokenizer


def word_vectors(texts: Sequence[str]) -> Tensor:
    """Unit vectors (T, 128) of texts, zero for one without known words. Raises PackError if the table is damaged."""
    table, tokenizer = _known()
    known = [[each for each in ids if each != tokenizer.unknown_id] for ids in tokenizer.ids(list(texts))]
    rows = [table[ids].mean(0) if ids else torch.zeros(table.shape[1]) for ids in known]
    return F.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, table.shape[1])


def reads_the_same(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has the vocabulary of the distilled token table."""
    return tokenizer.vocab_size == _tokenizer().vocab_size


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.wordpiece()


@cache
def _known() -> tuple[Tensor, Tokenizer]:
    return token_table(), _tokenizer()
