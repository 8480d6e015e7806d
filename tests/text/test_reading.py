"""Words that a tokenizer cannot read, emoji and full-width letters, and weights that were hardly meant."""

import warnings
from collections.abc import Callable

import pytest
import tokenizers

from codebrush.errors import PromptError
from codebrush.text.prompts import doubts, understood
from codebrush.text.reading import is_unreadable, read_prompt, readable, unread
from codebrush.text.scripts import script_counts
from codebrush.text.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.wordpiece()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a red apple, 3.5 cm! (100 % sure)", "a red apple, 3.5 cm! (100 % sure)"),
        ("café naïve Zoë", "café naïve Zoë"),
        ("🍎", "red apple"),
        ("two🍎on a tree", "two red apple on a tree"),
        ("I ❤️ you", "I red heart you"),
        ("👨‍👩‍👧", "family man woman girl"),
        ("ａ ｒｅｄ ａｐｐｌｅ", "a red apple"),
        ("ａｐｐｌｅ：３", "apple 3"),  # a colon that only now appears is no weight
        ("苹果 apple", "苹果 apple"),
    ],
)
def test_what_can_be_read_in_another_spelling(wordpiece: Tokenizer, text: str, read: str) -> None:
    found = readable(text, wordpiece)
    assert found == read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red apple 🍎 café, 3D!", []),
        ("苹果 apple", ["苹果"]),
        ("一只红苹果 一只红苹果", ["一只红苹果"]),
        ("рыжий кот", ["рыжий", "кот"]),  # every letter is in the vocabulary, and none has a meaning
        ("แมวสีส้ม", ["แมวสีส้ม"]),
        ("قطة cat", ["قطة"]),
        ("りんご", ["りんご"]),
        ("x" * 150, ["x" * 150]),
        ("", []),
    ],
)
def test_words_that_the_built_in_vocabulary_cannot_read(wordpiece: Tokenizer, text: str, words: list[str]) -> None:
    assert unread([text], wordpiece) == words


def test_vocabularies_made_for_a_script_read_it() -> None:
    captions = ["рыжий кот сидит на столе", "一只红苹果", "一只绿苹果"] * 9
    learned = train_bpe(captions, vocab_size=400)
    assert learned.unknown_id is None
    assert unread(["рыжий кот 苹果"], learned) == []
    assert unread(["แมวสีส้ม"], learned) == ["แมวสีส้ม"]
    assert readable("🍎 ａ", learned) == "🍎 ａ", "what spells everything in bytes is left as it was published"


def test_scripts_are_counted() -> None:
    assert script_counts(["cat", "##ный", "▁кот", "й", "苹", "苹果", "แมว", "a苹"], False) == {
        "CYRILLIC": 2,
        "CJK": 2,
        "THAI": 1,
    }
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    (token, _), *_ = byte_level.pre_tokenize_str("кот")
    assert script_counts([token], True) == {"CYRILLIC": 1}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a dog", []),
        ("a dog:1.2 | blurry:-0.5", []),
        ("3 dogs:2", []),
        ("flag: France", []),
        ("at 12\\:30", []),
        ("a dog:1:0.4", []),
        ("area 51:1.5", []),
        ("at 12:30", ['"at 12" is read with the weight 30: where the colon is text, as in 12:30, write \\: for it']),
        ("a 16:9 photo | x", None),
        ("format 16:9", ['"format 16" is read with the weight 9: where the colon is text, as in 12:30']),
        ("a dog | won 3:1", ['"won 3" is read with the weight 1: where the colon is text']),
        ("a dog:50", ['"a dog" is read with the weight 50, which drowns everything else']),
    ],
)
def test_weights_that_were_hardly_meant(prompt: str, said: list[str] | None) -> None:
    if said is None:
        with pytest.raises(PromptError, match="is not a number"):
            doubts(prompt)
        return
    found = doubts(prompt)
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_what_was_understood() -> None:
    assert understood("a dog:1.2 | at 12\\:30 | grey:-1:-0.4") == [
        {"text": "a dog", "weight": 1.2},
        {"text": "at 12:30", "weight": 1.0},
        {"text": "grey", "weight": -1.0, "stop": -0.4},
    ]


def warned(run: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught]


def test_a_prompt_is_read_with_one_line_for_each_doubt(wordpiece: Tokenizer) -> None:
    assert warned(lambda: read_prompt("a red apple:1.5 | blurry:-1", wordpiece)) == []
    assert read_prompt("a 🍎:1.5", wordpiece).split() == ["a", "red", "apple", ":1.5"]
    (time,) = warned(lambda: read_prompt("at 12:30", wordpiece))
    assert time.startswith('"at 12" is read with the weight 30')
    (line,) = warned(lambda: read_prompt("一 二 三 四 五 六 七只 apple", wordpiece))
    assert line.startswith('the pack cannot read "一", "二", "三", "四", "五" and 2 more, so they count for nothing')
    assert "the built-in pack: English" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("龙", True),
        ("火箭, 猫!", True),
        ("火箭 !", True),
        ("火箭 rocket", False),
        ("a cat", False),
        ("!!", False),
        ("🍎", False),
    ],
)
def test_texts_of_which_nothing_can_be_read(wordpiece: Tokenizer, text: str, is_lost: bool) -> None:
    assert is_unreadable(text, wordpiece) == is_lost


@pytest.mark.parametrize(("text", "counts"), [("苹果", "so it counts"), ("苹果 рыжий", "so they count")])
def test_the_warning_agrees_in_number(wordpiece: Tokenizer, text: str, counts: str) -> None:
    with pytest.warns(UserWarning, match=f"{counts} for nothing"):
        read_prompt(text, wordpiece)
