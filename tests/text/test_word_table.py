"""The distilled word table: words that the vocabulary only spells lie near words that mean the same."""

from pathlib import Path

import pytest
import torch

from codebrush.errors import PackError
from codebrush.text.tokenizer import Tokenizer
from codebrush.text.word_table import WORDS_FILE, WordTable, singulars_of, write_word_table
from codebrush.text.word_vectors import word_vectors

SPELT = {  # each falls into pieces, and means nearly the same as one of the others' words
    "pooch": "dog",
    "chardonnay": "wine",
    "jetliner": "airplane",
    "crustacean": "lobster",
    "schoolgirl": "girl",
    "tadpole": "frog",
    "gravestone": "tomb",
}


@pytest.fixture(scope="module")
def words() -> WordTable:
    return WordTable()


def test_only_words_that_are_no_token_once_each_in_small_letters(words: WordTable) -> None:
    tokenizer = Tokenizer.wordpiece()
    assert 70_000 < len(words.places) < 100_000
    assert all(word.isalpha() and word == word.lower() for word in words.places)
    assert not [word for word in words.places if tokenizer.backend.token_to_id(word) is not None]


def test_each_row_is_a_unit_vector_and_plurals_have_the_row_of_the_singular(words: WordTable) -> None:
    for word in ("pooch", "gravestone", "chardonnay"):
        row = words.vector(word)
        assert row is not None
        torch.testing.assert_close(row.norm(), torch.tensor(1.0))
    assert "tadpoles" not in words.places
    assert "strawberries" not in words.places
    torch.testing.assert_close(words.vector("tadpoles"), words.vector("tadpole"))
    assert words.vector("qwzzk") is None


def test_a_plural_ends_in_s() -> None:
    assert singulars_of("cherries") == ["cherrie", "cherri", "cherry"]
    assert singulars_of("tadpoles") == ["tadpole", "tadpol"]
    assert singulars_of("frog") == []


def test_words_that_are_only_spelt_are_nearest_to_what_they_mean() -> None:
    meant = list(SPELT.values())
    nearest = (word_vectors(list(SPELT)) @ word_vectors(meant).T).argmax(1)
    assert [meant[place] for place in nearest] == meant


def test_a_word_is_the_same_in_capitals_and_within_a_text() -> None:
    small, capitals, text = word_vectors(["gravestone", "Gravestone", "a grey gravestone, seen by night"])
    assert torch.equal(small, capitals)
    assert float(small @ text) > float(small @ word_vectors(["a grey building, seen by night"])[0])


def test_written_words_are_read_again(tmp_path: Path) -> None:
    rows = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([[1], [50], [0.01]])
    write_word_table(tmp_path / WORDS_FILE, ["one", "two", "three"], rows, {"source": "a test"})
    table = WordTable(tmp_path / WORDS_FILE)
    assert table.places == {"one": 0, "two": 1, "three": 2}
    for word, row in zip(("one", "two", "three"), rows, strict=True):
        found = table.vector(word)
        assert found is not None
        assert float(found.double() @ row / row.norm()) > 0.999  # 8 bits


def test_missing_and_damaged_tables_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="is missing"):
        WordTable(tmp_path / WORDS_FILE)
    (tmp_path / WORDS_FILE).write_bytes(b"damaged")
    with pytest.raises(PackError, match="is damaged") as error:
        WordTable(tmp_path / WORDS_FILE)
    assert "\n" not in str(error.value)
    write_word_table(tmp_path / WORDS_FILE, ["one", "one"], torch.ones(2, 96), {})
    with pytest.raises(PackError, match="words and rows differ in number"):
        WordTable(tmp_path / WORDS_FILE)
