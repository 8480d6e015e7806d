"""The prompt syntax: weights, escapes, what counts as text, and every error."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codebrush.errors import PromptError
from codebrush.text.prompts import MAX_PROMPT_LENGTH, ZERO_SHOT_TEMPLATES, WeightedText, parse_prompt


def parts(prompt: str) -> list[tuple[str, float]]:
    return [(part.text, part.weight) for part in parse_prompt(prompt).parts]


def escaped(text: str) -> str:
    return re.sub(r"([\\:|])", r"\\\1", text)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog", [("a dog", 1.0)]),
        ("a dog:1.2 | blurry:-0.5", [("a dog", 1.2), ("blurry", -0.5)]),
        ("dog|cat:2", [("dog", 1.0), ("cat", 2.0)]),
        ("dog:+.5|x:0", [("dog", 0.5), ("x", 0.0)]),
        ("dog:1e-1", [("dog", 0.1)]),
        ("dog :1.5 ", [("dog", 1.5)]),
        ("flag: France", [("flag: France", 1.0)]),
        ("flag: France:1.5", [("flag: France", 1.5)]),
        ("flag:\tFrance", [("flag: France", 1.0)]),
        ("dog: 2", [("dog: 2", 1.0)]),
        ("dog:", [("dog:", 1.0)]),
        ("dog:|cat", [("dog:", 1.0), ("cat", 1.0)]),
        ("at 12:30", [("at 12", 30.0)]),
        (r"at 12\:30", [("at 12:30", 1.0)]),
        (r"at 12\:30:2", [("at 12:30", 2.0)]),
        (r"this \| that", [("this | that", 1.0)]),
        (r"a \\ b \n", [("a \\ b \\n", 1.0)]),
        (r"smile \:)", [("smile :)", 1.0)]),
        ("  two \n lines\x00\x07 ", [("two lines", 1.0)]),
        ("🍎 日本:2", [("🍎 日本", 2.0)]),
        ("dog:100", [("dog", 100.0)]),
    ],
)
def test_what_a_prompt_means(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        (" \t\n\x00 ", "is empty"),
        ("\u200b\u200d", "is empty"),
        ("dog | ", "part of the prompt .* is empty"),
        ("| dog", "part of the prompt .* is empty"),
        ("dog || cat", "part of the prompt .* is empty"),
        (":1.2", "part of the prompt .* is empty"),
        ("dog:abc", r'weight "abc" of "dog" is not a number.*\\:'),
        ("re:zero the anime", "is not a number"),
        ("see http://a.b", "is not a number"),
        ("smile :)", "is not a number"),
        ("dog:1.2 cat:3", 'weight "1.2 cat" of "dog" is not a number'),
        ("dog:1,2", "is not a number"),
        ("dog:1_0", "is not a number"),
        ("dog:٣", "is not a number"),
        ("dog:0x10", "is not a number"),
        ("dog:nan", "is not finite"),
        ("dog:-inf", "is not finite"),
        ("dog:Infinity", "is not finite"),
        ("dog:1e999", "is too large"),
        ("dog:101", "between -100 and 100"),
        ("dog:-1e5", "between -100 and 100"),
        ("dog:-1", "no part .* positive weight"),
        ("dog:0 | cat:-0.5", "no part .* positive weight"),
        ("a" * (MAX_PROMPT_LENGTH + 1), "4,001 characters"),
        ("half \ud83d", "not valid Unicode"),
        (None, "not NoneType"),
    ],
)
def test_what_is_refused_and_why(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as error:
        parse_prompt(prompt)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_the_longest_prompt_is_read() -> None:
    assert parts("a" * MAX_PROMPT_LENGTH) == [("a" * MAX_PROMPT_LENGTH, 1.0)]


VISIBLE = st.text(alphabet=string.ascii_letters + string.digits + r"\:| .-é日", min_size=1, max_size=30)
TEXT = VISIBLE.map(lambda text: " ".join(text.split())).filter(bool)
WEIGHT = st.floats(min_value=-100, max_value=100)


@given(st.lists(st.tuples(TEXT, WEIGHT), max_size=5), TEXT)
def test_escaped_texts_and_written_weights_come_back(weighted: list[tuple[str, float]], plain: str) -> None:
    written = " | ".join([*(f"{escaped(text)}:{weight!r}" for text, weight in weighted), escaped(plain)])
    expected = (*(WeightedText(text, weight) for text, weight in weighted), WeightedText(plain))
    assert parse_prompt(written).parts == expected


@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        read = parse_prompt(text).parts
    except PromptError as error:
        read, message = (), str(error)
    assert "\n" not in message
    assert bool(message) != any(part.weight > 0 for part in read)
    assert all(part.text == " ".join(part.text.split()) != "" for part in read)


def test_templates_take_one_label_each() -> None:
    assert len(set(ZERO_SHOT_TEMPLATES)) >= 5
    assert all(template.format("{odd} label").count("{odd} label") == 1 for template in ZERO_SHOT_TEMPLATES)


def test_a_part_may_have_a_stop() -> None:
    parts = parse_prompt("a dog:1.2:0.4 | blurry:-0.5:-.9 | at 12\\:30 | a cat:2").parts
    assert [(part.text, part.weight, part.stop) for part in parts] == [
        ("a dog", 1.2, 0.4), ("blurry", -0.5, -0.9), ("at 12:30", 1.0, None), ("a cat", 2.0, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a:1:b", 'the stop "b" of "a" is not a number'),
        ("a:1:", 'the stop "" of "a" is not a number'),
        ("a:1: 2", 'the stop " 2" of "a" is not a number'),
        ("a:1 :2", 'the weight "1 " of "a" is not a number'),
        ("a::2", 'the weight "" of "a" is not a number'),
        ("a:1:2:3", 'the stop "2:3" of "a" is not a number'),
        ("a:1:nan", 'the stop "nan" of "a" is not finite'),
        ("a:1:1e999", 'the stop "1e999" of "a" is too large'),
        ("a:101:2", 'the weight "101" of "a" is too large'),
    ],
)
def test_a_stop_is_a_number_that_touches_its_colon(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as error:
        parse_prompt(prompt)
    assert "\n" not in str(error.value)


@given(TEXT, WEIGHT, st.floats(allow_nan=False, allow_infinity=False))
def test_written_stops_come_back(text: str, weight: float, stop: float) -> None:
    part, _ = parse_prompt(f"{escaped(text)}:{weight!r}:{stop!r} | plain").parts
    assert part == WeightedText(text, weight, stop)
