"""The distilled token table: its shape, and that words of similar meaning lie near each other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from codebrush.errors import PackError
from codebrush.text.token_table import TABLE_FILE, token_table
from codebrush.text.tokenizer import Tokenizer

SYNONYMS = [
    ("puppy", "dog"),
    ("infant", "baby"),
    ("cab", "taxi"),
    ("aeroplane", "airplane"),
    ("physician", "doctor"),
    ("hound", "dog"),
    ("spectacles", "glasses"),
    ("stallion", "horse"),
    ("dwelling", "house"),
    ("joyful", "happy"),
    ("automobile", "car"),
    ("bunny", "rabbit"),
]


@pytest.fixture(scope="module")
def table() -> Tensor:
    return token_table()


def embed(table: Tensor, texts: list[str]) -> Tensor:
    """(B, 128) unit vectors: the mean of the rows of each text's tokens, the special ones left out."""
    tokenizer = Tokenizer.wordpiece()
    tokens = tokenizer(texts)  # (B, T)
    specials = torch.tensor([tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id])
    words = ~torch.isin(tokens, specials)
    return normalize((table[tokens] * words[..., None]).sum(dim=1), dim=-1)


def test_one_finite_row_for_each_token(table: Tensor) -> None:
    assert table.shape == (Tokenizer.wordpiece().vocab_size, 128)
    assert table.dtype == torch.float32
    assert table.isfinite().all()
    assert table[0].abs().max() == 0  # padding
    assert (table[1:].norm(dim=1) > 0).all()


def test_common_words_weigh_less(table: Tensor) -> None:
    common, rare = (embed(table, words) @ embed(table, ["the dog"]).T for words in (["the"], ["dog"]))
    assert rare.item() > common.item()


def test_synonyms_are_nearer_than_other_words(table: Tensor) -> None:
    words = embed(table, [word for word, _ in SYNONYMS])
    others = sorted({other for _, other in SYNONYMS})
    similarity = words @ embed(table, others).T  # (words, others)
    nearest = [others[index] for index in similarity.argmax(dim=1)]
    assert nearest == [other for _, other in SYNONYMS]


def test_missing_and_damaged_tables_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="is missing"):
        token_table(tmp_path)
    (tmp_path / TABLE_FILE).write_bytes(b"damaged")
    with pytest.raises(PackError, match="is damaged") as error:
        token_table(tmp_path)
    assert "\n" not in str(error.value)
