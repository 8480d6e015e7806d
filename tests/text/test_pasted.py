"""Prompts that were written for other programs: what is understood, what is named, what stays as it was."""

import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codebrush import Codebrush
from codebrush.errors import PromptError
from codebrush.text.pasted import pasted, plain_text, typed, typed_text
from codebrush.text.prompts import parse_prompt


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("(a dog:1.2)", "a dog:1.2"),
        ("((a red apple))", "a red apple:1.21"),
        ("[a dog]", "a dog:0.909091"),
        ("{a dog}", "a dog:1.05"),
        ("(a dog)1.3", "a dog:1.3"),
        ("(a dog)++", "a dog:1.21"),
        ("a (red:1.3) apple", "a red apple | red:0.3"),
        ("a [red] apple", "a red apple | red:-0.090909"),
        ("(best:1.2), (a cat:1.2)", "best, a cat:1.2"),
        ("(a (b:1.5) c:1.2)", "a b c | a, c:0.2 | b:0.8"),
        ("a (dog:0), cat", "a, cat"),
        ("a (dog:-1) cat", "a cat | dog:-1.0"),
        ("a [red] apple:1.2 | (blurry:1.4):-0.5", "a red apple:1.2 | red:-0.109091 | blurry:-0.7"),
        ("a (dog:2):1:0.4", "a dog:1.0:0.4 | dog:1.0:0.4"),
        ("a dog AND a cat:0.8", "a dog | a cat:0.8"),
        ("a cat BREAK a dog", "a cat, a dog"),
        (r"a bat \(animal\)", "a bat (animal)"),
        ("(re:zero)", r"re\:zero:1.1"),
        (r"at 12\:30 (noon)", r"at 12\:30 noon | noon:0.1"),
        ("a photo (16:9)", r"a photo 16\:9 | 16\:9:0.1"),
        ("a clock (at 10:09)", r"a clock at 10\:09 | at 10\:09:0.1"),
        ("(route 66:1.3)", "route 66:1.3"),
        ("a 16:9 photo at 12:30, noon", r"a 16\:9 photo at 12\:30, noon"),
        ("12:30pm in Rome:1.2", r"12\:30pm in Rome:1.2"),
        ("(a cat | a dog)", "a cat:1.1 | a dog:1.1"),
        ("(a cat AND a dog:1.3):0.5", "a cat:0.65 | a dog:0.65"),
        ("((a cat:1.2) | a dog)", "a cat:1.32 | a dog:1.1"),
        ("a (red | blue) car", "a red, blue car | red, blue:0.1"),
        ("a cat::2 a dog", "a cat:2 | a dog"),
        ("hot:: dog::-.5 | sun", "hot | dog:-.5 | sun"),
        ("1.5::a cat::, a dog", "a cat:1.5 | a dog"),
        ("(a cat::2)", "a cat:2.0"),
        (r"rock \AND roll, a \BREAK dance", "rock AND roll, a BREAK dance"),
        (r"a \--b and \_\_c__", "a --b and __c__"),
    ],
)
def test_weights_of_other_programs_are_understood(prompt: str, read: str) -> None:
    assert pasted(prompt) == (read, [])
    parse_prompt(read)


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog",
        "a dog:1.2 | blurry:-0.5",
        "flag: France",
        "I <3 you",
        "BLACK AND WHITE",
        "C++ and well-known",
        "a ( b",
        "a cat — sitting",
        "a cat —sitting",
        "area 51:1.5",
        "a dog:1:0.4 | grey:-1:-0.4",
    ],
)
def test_what_is_of_no_other_program_stays(prompt: str) -> None:
    assert parse_prompt(pasted(prompt)[0]) == parse_prompt(prompt)
    assert pasted(prompt)[1] == []


@pytest.mark.parametrize(
    ("prompt", "read", "named"),
    [
        ("a cat, <lora:film:0.8>, red", "a cat, red", "<lora:film:0.8>"),
        ("<lora:film:1> a (cat:2)", "a cat | cat", "<lora:film:1>"),
        ("embedding:easy, a cat", "a cat", "embedding:easy"),
        ("a __colour__ cat", "a cat", "__colour__"),
        ("a cat --ar 16:9", "a cat", "--ar 16:9"),
        ("a cat --no dogs | red", "a cat | red", "negative prompt"),
        ("a cat:1.2 --no dogs", "a cat:1.2", "negative prompt"),
        ("--ar 3:2 a cat", "a cat", "--ar 3:2"),
        ("a cat --s 250 in a hat", "a cat in a hat", "--s 250"),
        ("a cat —ar 16:9", "a cat", "—ar 16:9"),
        ("a cat::2 --v 6", "a cat:2", "--v 6"),
        ("a [red:blue:0.5] cat", "a blue cat", "[red:blue:0.5]"),
        ("a [red::0.5] cat", "a red cat", "[red::0.5]"),
        ("a [red|blue] cat", "a red cat", "red|blue"),
        ("a {red|blue} cat", "a red cat", "at random"),
    ],
)
def test_what_has_no_meaning_here_is_named_and_not_drawn(prompt: str, read: str, named: str) -> None:
    found, (line,) = pasted(prompt)
    assert found == read
    assert named in line


def test_a_prompt_of_nothing_else_is_empty() -> None:
    with pytest.raises(PromptError, match="empty"):
        parse_prompt(pasted("<lora:film:1>, ()")[0])
    with pytest.raises(PromptError, match="more than 20 brackets"):
        pasted("(" * 30 + "a" + ")" * 30)


@given(st.text("ab \\:|()[]{}<>1.,-+_", max_size=25))
@example("rock AND roll | a BREAK b")
@example("a --b __c__ ___d__")
@example("\\AND --x")
@example("<a:1>, <b>")
def test_what_was_drawn_can_be_typed_again(prompt: str) -> None:
    try:
        parts = parse_prompt(prompt)
    except PromptError:
        return
    assert parse_prompt(pasted(typed(prompt))[0]) == parts


@pytest.mark.parametrize(
    ("text", "read", "named"),
    [
        ("oil painting, 16:9 format", "oil painting, 16:9 format", None),
        ("flag:France", "flag:France", None),
        ("a (red:1.3) apple", "a red apple", "weights"),
        ("a dog:1.2 | a cat:-1", "a dog", "weights"),
        ("<lora:film:1>", "", "<lora:film:1>"),
        ("a cat --ar 3:2", "a cat", "--ar 3:2"),
    ],
)
def test_texts_without_weights_are_read_by_the_same_function(text: str, read: str, named: str | None) -> None:
    found, said = plain_text(text)
    assert found == read
    assert [named in line for line in said] == ([] if named is None else [True])
    assert plain_text(typed_text(text)) == (text, [])


@pytest.mark.parametrize("option", ["include", "exclude", "extra", "negative_prompt"])
def test_nothing_of_other_programs_is_drawn_as_words_by_guidance(micro_pack: Path, option: str) -> None:
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    given = {option: ["oil <lora:x:1>"] if option != "negative_prompt" else "oil <lora:x:1>"}
    with pytest.warns(UserWarning, match="<lora:x:1>"):
        run = brush.guide("a circle", init="random", steps=1, cutouts=1, **given)
    assert "lora" not in str(run.request.to_json())
    assert "oil" in str(run.request.to_json())


def test_pictures_say_what_was_drawn_and_replay_without_reading_it_again(micro_pack: Path) -> None:
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    with pytest.warns(UserWarning, match="lora") as warned:
        (drawn,) = brush.generate("a (red:1.3) circle <lora:x:1>", n=1, rerank=1, seed=1)
    assert len([each for each in warned if "lora" in str(each.message)]) == 1
    assert drawn.manifest["prompt"] == "a red circle | red:0.3"
    (same,) = brush.generate("a red circle | red:0.3", n=1, rerank=1, seed=1)
    assert same.image.tobytes() == drawn.image.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (literal,) = brush.generate(r"a \(red\) circle", n=1, rerank=1, seed=1)
    assert literal.manifest["prompt"] == "a (red) circle"
    assert brush.replay(literal.manifest).image.tobytes() == literal.image.tobytes()
