import math

import numpy as np
import pytest

from codebrush.evaluation.captions import cider

REFERENCES = [["a red cat sits here"], ["a blue dog runs there"], ["two green birds fly away"]]


def test_the_reference_itself_is_best() -> None:
    own = cider([texts[0] for texts in REFERENCES], REFERENCES)
    assert own == pytest.approx([10.0] * 3)
    wrong = cider([texts[0] for texts in REFERENCES[1:] + REFERENCES[:1]], REFERENCES)
    assert (wrong < 1).all()


def test_it_is_the_formula() -> None:
    """By hand, of captions that share one word: unigrams alone agree."""
    said, references = ["cat"], [["red cat"], ["blue dog"]]
    rare = math.log(2)
    unigrams = rare**2 / (rare * math.sqrt(2 * rare**2))
    expected = 10 * unigrams / 4 * math.exp(-1 / (2 * 6.0**2))
    assert cider([*said, "bird"], references) == pytest.approx([expected, 0.0])


def test_words_that_all_pictures_share_count_nothing() -> None:
    found = cider(["a", "a", "a"], [["a cat"], ["a dog"], ["a bird"]])
    assert found == pytest.approx([0.0] * 3)


def test_a_word_said_often_counts_as_often_as_the_reference_has_it() -> None:
    once, often = (cider([text, "x"], [["red cat"], ["blue dog"]])[0] for text in ("red", "red red red red red"))
    assert 0 < often < once


def test_case_and_marks_do_not_matter() -> None:
    plain, dressed = (
        cider(["red cat", "dog"], [["Red, cat!"], ["dog"]]),
        cider(["Red cat.", "dog"], [["red cat"], ["dog"]]),
    )
    np.testing.assert_allclose(plain, dressed)


def test_several_references_are_averaged() -> None:
    both = cider(["red cat", "dog"], [["red cat", "blue bird"], ["dog"]])[0]
    assert 0 < both < 10


@pytest.mark.parametrize("references", [[["a"]], [["a"], []]])
def test_every_caption_needs_a_reference(references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="every caption needs references"):
        cider(["a", "b"], references)
