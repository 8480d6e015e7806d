"""Which answers fit which kinds of questions."""

import pytest

from codebrush.understanding.question_kinds import fits_question


@pytest.mark.parametrize(
    ("question", "fitting", "others"),
    [
        ("how many red circles are there?", ["0", "12", "three"], ["yes", "red", "circle", ""]),
        ("count the stars", ["3"], ["star"]),
        ("what color is the roof?", ["red", "light blue", "grey"], ["no", "2", "circle", "red circle"]),
        ("Which colours do you see", ["red and blue"], ["yes"]),
        ("what shapes?", ["circle", "a red circle"], ["0", "no", "red"]),
        ("is there a red circle?", ["yes", "no"], ["red", "1"]),
        ("is the star left or right of the ring?", ["left", "right", "yes"], ["above", "star"]),
        ("can you eat or drink it?", ["yes", "no"], ["2"]),
        ("where is the star?", ["in the top left", "above the ring"], ["no", "2", "blue"]),
        ("what is it?", ["red apple", "orange", "rocket"], ["yes", "2"]),
        ("how old is he?", ["7"], ["no"]),
        ("why is it sad?", ["rain"], ["no", "1"]),
        ("describe it", ["a red circle", "yes"], [""]),
    ],
)
def test_an_answer_fits_its_question(question: str, fitting: list[str], others: list[str]) -> None:
    assert [answer for answer in fitting if not fits_question(question, answer)] == []
    assert [answer for answer in others if fits_question(question, answer)] == []
