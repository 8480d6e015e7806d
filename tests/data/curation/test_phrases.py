"""Balancing by phrase and splitting by concept."""

import hashlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from codebrush.data.curation.phrases import Phrases, check_shares, split_of, uniform
from codebrush.errors import UsageError


def counted(rows: list[list[str]], given: list[str] | None = None) -> Phrases:
    phrases = Phrases(given)
    for captions in rows:
        phrases.count(captions)
    return phrases


def test_the_rarest_word_of_a_row_decides():
    phrases = counted([["a photo of a dog"]] * 8 + [["a photo of a cat"]] * 2 + [["a Photo!"]])
    assert dict(phrases.counts) == {"photo": 11, "dog": 8, "cat": 2}
    assert phrases.rarest(["the photo of the dog"]) == ("dog", 8)
    assert phrases.rarest(["a dog", "and a cat"]) == ("cat", 2)
    assert phrases.rarest(["nothing of it"]) is None


def test_the_commonest_phrases_are_the_same_each_time():
    """Equal counts came in the order of a set of strings, which differs from one process to the next."""
    words = [f"word{letter}" for letter in "hgfedcba"]
    assert counted([[" ".join(words)]] * 2).commonest(4) == [(word, 2) for word in sorted(words)[:4]]
    assert counted([["a dog and a cat"], ["a dog"]]).commonest(9) == [("dog", 2), ("cat", 1)]


def test_a_row_counts_a_word_once():
    assert counted([["dog dog", "a dog"]]).counts["dog"] == 1


def test_a_word_of_one_row_keeps_no_row():
    """Otherwise file numbers would keep every row."""
    phrases = counted([["dog img20391"], ["dog img20392"], ["dog 17"]])
    assert phrases.rarest(["dog img20391"]) == ("dog", 3)


def test_given_phrases_match_whole_words():
    phrases = counted([["a hot dog stand"], ["hot dogs"], ["a dog"]], ["hot dog", "dog"])
    assert dict(phrases.counts) == {"hot dog": 1, "dog": 2}
    assert phrases.rarest(["Hot-Dog!"]) == ("hot dog", 1)
    assert phrases.rarest(["a hotdog"]) is None


def test_words_are_forgotten_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("codebrush.data.curation.phrases.OWN_MOST", 50)
    phrases = counted([[f"dog unique{number}x"] for number in range(500)])
    assert len(phrases.counts) <= 51
    assert phrases.counts["dog"] == 500


def test_the_split_is_a_share_of_concepts():
    found = Counter(split_of(f"concept {number}", (0.8, 0.15, 0.05)) for number in range(20_000))
    assert found["train"] / 20_000 == pytest.approx(0.8, abs=0.01)
    assert found["val"] / 20_000 == pytest.approx(0.15, abs=0.01)
    assert found["test"] / 20_000 == pytest.approx(0.05, abs=0.01)


def test_uniform_is_the_documented_rule():
    assert uniform("1f600") == int(hashlib.sha256(b"1f600").hexdigest()[:8], 16) / 2**32
    assert {split_of(f"{number}", (1.0, 0.0, 0.0)) for number in range(1000)} == {"train"}
    assert {split_of(f"{number}", (0.0, 0.0, 1.0)) for number in range(1000)} == {"test"}


def test_the_emoji_set_was_split_by_this_rule(shared: Path):
    rows = pq.read_table(shared / "data" / "emoji.parquet", columns=["concept", "split"]).to_pylist()
    assert len(rows) == 16_941
    assert all(split_of(row["concept"], (0.9, 0.05, 0.05)) == row["split"] for row in rows)


@pytest.mark.parametrize("shares", [(0.9, 0.05), (0.9, 0.05, 0.06), (1.1, -0.1, 0.0), (0.5, 0.5, float("nan"))])
def test_shares_add_up(shares: tuple[float, ...]):
    with pytest.raises(UsageError, match="add up to 1"):
        check_shares(shares)
