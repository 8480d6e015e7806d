"""OpenAI's clean-up of texts, and where it finds special tokens in them."""

import subprocess
import sys

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codebrush.text.cleanup import clean_openai, split_specials

SPECIALS = ("<|startoftext|>", "<|endoftext|>")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A  Photo\tof\r\na CAT ", "a photo of a cat"),
        ("don’t “quote”", 'don\'t "quote"'),
        ("cafe\u0301", "café"),
        ("â€™ schÃ¶n", "' schön"),
        ("&amp;amp; twice", "& twice"),
        ("&amp;amp;amp; thrice, which is once too often", "& thrice, which is once too often"),
        ("&lt;b&gt;", "<b>"),
        ("<i> e&#769;", "<i> e\u0301"),  # composed before entities are resolved, not after
        ("ＦＵＬＬ ﬁne", "full fine"),
        ("\x1b[31mred\x1b[0m\x07", "red"),
        ("&nbsp; a &nbsp;", "a"),
        ("ΟΔΟΣ", "οδος"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("\ud83d\ude00", "😀"),
        ("", ""),
    ],
)
def test_texts_are_repaired_resolved_spaced_and_lower_cased(text: str, cleaned: str) -> None:
    assert clean_openai(text) == cleaned


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_ftfy_would_leave_unchanged_what_it_is_not_given(text: str) -> None:
    if "&" not in text:
        assert ftfy.fix_text(text) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a dog", ["a dog"]),
        ("<|endoftext|>", ["<|endoftext|>"]),
        ("a <|endoftext|> b<|startoftext|>", ["a ", "<|endoftext|>", " b", "<|startoftext|>"]),
        ("<|endoftext|><|endoftext|>!", ["<|endoftext|>", "<|endoftext|>", "!"]),
        ("!<|endoftext|><|endoftext|> <|endoftext|>", ["!<|endoftext|><|endoftext|> ", "<|endoftext|>"]),
        ("7<|endoftext|>", ["7", "<|endoftext|>"]),
        ("\u0301<|endoftext|>", ["\u0301<|endoftext|>"]),
        ("\u0345<|endoftext|>", ["\u0345", "<|endoftext|>"]),
        ("<|endoftext|", ["<|endoftext|"]),
    ],
)
def test_special_tokens_are_found_where_a_word_may_begin(text: str, parts: list[str]) -> None:
    assert split_specials(text, SPECIALS) == parts


def test_ftfy_is_imported_only_for_a_text_that_needs_it() -> None:
    program = """
import sys
from codebrush.text.cleanup import clean_openai
clean_openai("a Red apple!")
assert "ftfy" not in sys.modules
assert clean_openai("it’s") == "it's"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
