"""Text is broken into lines that fit, in every script, in time that grows with the lines and not with the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from codebrush.data.text_layout import cut, wrapped

FONT = ImageFont.load_default(size=12)


class Counting:
    """A font that adds up how many letters it was asked to measure."""

    def __init__(self) -> None:
        self.letters = 0

    def getlength(self, text: str) -> float:
        self.letters += len(text)
        return FONT.getlength(text)


def plainly(text: str, width: int, most: int) -> list[str]:
    """The rule for words between blanks, letter by letter."""

    def shortened(line: str) -> str:
        if FONT.getlength(line) <= width:
            return line
        while line and FONT.getlength(line + "...") > width:
            line = line[:-1]
        return line.rstrip() + "..."

    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if FONT.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [shortened(line) for line in lines]


@given(st.text(alphabet="aeimW lf.,-/ \t\nüé", max_size=400), st.sampled_from([40, 96, 128, 500]))
@settings(max_examples=60, deadline=None)
def test_short_captions_are_laid_out_as_letter_by_letter(text: str, width: int) -> None:
    assert wrapped(text, FONT, width, most=3) == plainly(text, width, 3)


@pytest.mark.parametrize("text", ["word " * 20_000, "w" * 100_000, "字" * 100_000, "ก็" * 50_000, "e\u0301" * 50_000])
def test_what_is_not_shown_is_not_measured(text: str) -> None:
    font = Counting()
    lines = wrapped(text, font, 128, most=3)  # type: ignore[arg-type]
    assert 1 <= len(lines) <= 3
    assert lines[-1].endswith("...")
    assert all(FONT.getlength(line) <= 128 for line in lines)
    assert font.letters < 60_000


def test_scripts_without_blanks_fill_their_lines() -> None:
    text = "一只红苹果放在木桌上旁边有一本打开的书和一杯茶"
    lines = wrapped(text, FONT, 96)
    assert "".join(lines) == text
    assert len(lines) > 1
    assert all(FONT.getlength(line) <= 96 < FONT.getlength(line + text[:2]) for line in lines[:-1])
    assert wrapped("a 苹果 b", FONT, 500) == ["a 苹果 b"]
    thai = "แมวสีส้มนั่งอยู่บนโต๊ะไม้ในห้องครัว"
    lines = wrapped(thai, FONT, 60)
    assert "".join(lines) == thai
    assert len(lines) > 1
    assert not any(line[0] in "\u0e31\u0e34\u0e35\u0e36\u0e37\u0e48\u0e49" for line in lines), "a mark begins a line"


def test_emoji_and_right_to_left_words_stay_whole() -> None:
    family = "👨‍👩‍👧"
    assert all(line.count("👨") == line.count("👧") for line in wrapped(family * 9, FONT, 60))
    arabic = "تفاحة حمراء على طاولة خشبية"
    lines = wrapped(arabic, FONT, 90)
    assert " ".join(lines) == arabic
    assert len(lines) > 1
    assert wrapped("half \ud83d of one\x00", FONT, 500)[0].startswith("half ? of one")


def test_cut() -> None:
    assert cut("short", FONT, 100) == "short"
    assert cut("", FONT, 10) == ""
    assert cut("a long line of text", FONT, 60) == "a long lin..."
    assert cut("anything", FONT, 1) == "..."
