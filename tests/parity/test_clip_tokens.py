"""Token ids of OpenAI's CLIP: stored ones, those of its algorithm written out plainly, and transformers'."""

import gzip
import html
import json
import pickle
import re
import unicodedata
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftfy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from codebrush.errors import PackError, PromptError
from codebrush.text.tokenizer import Tokenizer

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
WORDS = ["photo", "apple", "dog", "café", "don", "...", "&", "😀", "style", "endoftext", "<|", "|>"]
PIECES = ["<|endoftext|>", "<|StartOfText|>", "'s", "'S", "'ſ", "'LL", "&amp;", "&amp;amp;", "&lt;b&gt;", "<b>", "&"]
PIECES += ["e&#769;", "\u0345", "ΟΔΟΣ", "İ", "ﬁ", "“", "â€™", "\u00a0", "\x1b[0m", "\x1c", "\u200b", "Ⅷ", "½", "12"]
PIECES += ["!", "'", "...", " ", "\r\n", "Photo", "apple", "DOG", "😀", "\ud83d", "\ud83d\ude00", "&#xD800;", "\ufeff"]


def byte_letters() -> dict[int, str]:
    """A visible letter for each byte: itself where it is visible, else one from U+0100 on."""
    letters = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + sum(ord(letter) > 255 for letter in letters.values())))
    return letters


LETTERS = byte_letters()


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each of `words` one token, from its left to its right."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        letters = [LETTERS[byte] for byte in word.encode()]
        letters[-1] += "</w>"
        left = letters[0]
        for letter in letters[1:]:
            merges[left, letter] = None
            left += letter
    return list(merges)


class Plain:
    """OpenAI's algorithm as its README and code describe it, one step after the other."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.regex: Any = pytest.importorskip("regex")
        letters = sorted(LETTERS.values(), key=lambda letter: (ord(letter) > 255, letter))
        tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
        self.specials = ("<|startoftext|>", "<|endoftext|>")
        self.ids = {token: index for index, token in enumerate([*tokens, *self.specials])}
        self.rank = {pair: index for index, pair in enumerate(merges)}
        self.words = self.regex.compile(
            r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            self.regex.IGNORECASE,
        )

    def encode(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        words = self.words.findall(re.sub(r"\s+", " ", text).strip().lower())
        return [self.ids[token] for word in words for token in self.merged(word)]

    def merged(self, word: str) -> list[str]:
        if word in self.specials:
            return [word]
        parts = [LETTERS[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while best := min(
            (pair for pair in pairwise(parts) if pair in self.rank), key=self.rank.__getitem__, default=None
        ):
            joined: list[str] = []
            while parts:
                taken = 2 if tuple(parts[:2]) == best else 1
                joined.append("".join(parts[:taken]))
                parts = parts[taken:]
            parts = joined
        return parts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer from a list of merges in the layout of the published one."""
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.txt.gz"
    lines = ["version", *(" ".join(pair) for pair in merges_of(WORDS))]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return Tokenizer.from_files(path)


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain(merges_of(WORDS))


@pytest.fixture(scope="module")
def published(golden_file: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.from_files(golden_file(VOCABULARY))


@pytest.fixture(scope="module")
def rows(golden_file: Callable[[str], Path]) -> list[dict[str, Any]]:
    return json.loads(golden_file("clip_tokens_a.json").read_text(encoding="utf-8"))["rows"]


@pytest.fixture(scope="module")
def expected(golden_file: Callable[[str], Path]) -> Tensor:
    return load_file(golden_file("clip_tokens_a.io.safetensors"))["output.tokens"]


def body(tokenizer: Tokenizer, text: str, length: int = 400) -> list[int]:
    """The ids between the start token and the last end token."""
    row = tokenizer(text, context_length=length, on_long="error")[0].tolist()
    last = length - 1 - row[::-1].index(tokenizer.end_id)
    assert row[0] == tokenizer.start_id
    assert not any(row[last + 1 :])
    return row[1:last]


def test_published_vocabulary_has_openais_sizes(published: Tokenizer) -> None:
    assert (published.vocab_size, published.context_length) == (49_408, 77)
    assert (published.start_id, published.end_id, published.pad_id) == (49_406, 49_407, 0)


def test_every_stored_string_has_its_ids(published: Tokenizer, rows: list[dict[str, Any]], expected: Tensor) -> None:
    assert len(rows) == len(expected) > 60
    texts = [row["text"] for row in rows]
    assert torch.equal(published(texts, on_long="truncate"), expected)
    for row, ids in zip(rows, expected, strict=True):
        assert torch.equal(published(row["text"], on_long="truncate")[0], ids), row["text"]
        assert body(published, row["text"]) == row["encode"], row["text"]
        if row["decode"] is not None and "<|" not in row["decode"]:
            assert published.decode([*row["encode"], published.end_id]) == row["decode"].strip()


def test_too_long_strings_warn_or_fail_and_the_rest_do_not(published: Tokenizer, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["too_long"]:
            with pytest.warns(UserWarning, match="only the first 75 are read"):
                assert published(row["text"])[0, -1] == published.end_id
            with pytest.raises(PromptError, match="over the 75"):
                published(row["text"], on_long="error")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                published(row["text"])
    assert sum(row["too_long"] for row in rows) > 1


def test_stored_ids_survive_saving_and_pickling(
    published: Tokenizer, rows: list[dict[str, Any]], expected: Tensor, tmp_path: Path
) -> None:
    published.save(tmp_path)
    for copy in (Tokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(published))):
        assert torch.equal(copy([row["text"] for row in rows], on_long="truncate"), expected)


def test_cleaning_counts(published: Tokenizer, rows: list[dict[str, Any]]) -> None:
    published_without = Tokenizer(
        published.backend, pad=None, start=published.start, end=published.end, context_length=400
    )
    changed = [row for row in rows if row["changed_by_ftfy"]]
    assert changed
    assert all(body(published_without, row["text"]) != row["encode"] for row in changed)


def older(letter: str) -> bool:
    # libraries differ on letters that their tables of Unicode do not know yet
    return unicodedata.ucd_3_2_0.category(letter) not in ("Cn", "Co", "Cs")


pieces = st.lists(st.sampled_from(PIECES) | st.characters(max_codepoint=0x2FFF).filter(older), max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=pieces)
def test_plain_rewriting_gives_the_same_ids(tiny: Tokenizer, plain: Plain, text: str) -> None:
    assert body(tiny, text) == plain.encode(text)


def test_merges_are_applied(tiny: Tokenizer) -> None:
    vocab = tiny.backend.get_vocab()
    assert body(tiny, "PHOTO  &amp; don’t") == [
        vocab[token] for token in ("photo</w>", "&</w>", "don</w>", "'", "t</w>")
    ]
    assert tiny.pad_id == vocab["!"] == 0
    assert tiny("dog")[0, :5].tolist() == [tiny.start_id, vocab["dog</w>"], tiny.end_id, 0, 0]
    assert tiny("!")[0, 1] == vocab["!</w>"]


def test_typed_special_tokens_count_where_a_word_may_begin(tiny: Tokenizer) -> None:
    end, start, dog = tiny.end_id, tiny.start_id, tiny.backend.get_vocab()["dog</w>"]
    assert body(tiny, "dog<|EndOfText|><|startoftext|>dog") == [dog, end, start, dog]
    assert end not in body(tiny, "!<|endoftext|>")
    assert tiny("a <|endoftext|>" * 40, on_long="truncate")[0, -1] == end


def test_saved_and_pickled_copies_clean_as_well(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    for copy in (Tokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tiny))):
        assert (copy.cleanup, copy.pad, copy.pad_id, copy.context_length) == ("openai", None, 0, 77)
        assert torch.equal(copy(PIECES), tiny(PIECES))
    Tokenizer.from_pretrained(tmp_path).save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_clean_up_from_the_future_is_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"openai"', '"siglip3"'))
    with pytest.raises(PackError, match="unknown text clean-up"):
        Tokenizer.from_pretrained(tmp_path)


def test_transformers_gives_the_same_ids_for_clean_texts(tiny: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab, merges = tiny.backend.get_vocab(), [f"{a} {b}" for a, b in merges_of(WORDS)]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_files(tmp_path)
    tiny.save(tmp_path / "saved")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert ours.cleanup is None
    for text in ("a photo of a DOG", "Café, don't!  apple...", "50% off 😀 #1", "", "style " * 90):
        ids = theirs(text).input_ids
        assert [tiny.start_id, *body(tiny, text), tiny.end_id] == ids == opened(text).input_ids
        assert torch.equal(ours(text, on_long="truncate")[0, : len(ids[:76])], torch.tensor(ids[:76]))
    assert ours("dog")[0, -1] == ours.end_id == ours.pad_id
    # the files of transformers' kind state no clean-up, and get none
    assert body_of(ours, "don’t &amp; do") == theirs("don’t &amp; do").input_ids != body(tiny, "don’t &amp; do")


def body_of(tokenizer: Tokenizer, text: str) -> list[int]:
    row = tokenizer(text)[0].tolist()
    return row[: row.index(tokenizer.end_id) + 1]
