"""CIDEr-D compared with its formula, worked out by hand."""

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
    """By hand, for captions that share one word: only unigrams match."""
    captions, references = ["cat", "bird"], [["red cat"], ["blue dog"]]
    rare = math.log(2)
    unigrams = rare**2 / (rare * math.sqrt(2 * rare**2))
    expected = 10 * unigrams / 4 * math.exp(-1 / (2 * 6.0**2))
    assert cider(captions, references) == pytest.approx([expected, 0.0])


def test_words_of_all_pictures_have_no_weight() -> None:
    found = cider(["a", "a", "a"], [["a cat"], ["a dog"], ["a bird"]])
    assert found == pytest.approx([0.0] * 3)


def test_repeating_a_word_of_the_reference_lowers_the_score() -> None:
    once, often = (cider([text, "x"], [["red cat"], ["blue dog"]])[0] for text in ("red", "red red red red red"))
    assert 0 < often < once


def test_case_and_punctuation_do_not_matter() -> None:
    plain, dressed = (
        cider(["red cat", "dog"], [["Red, cat!"], ["dog"]]),
        cider(["Red cat.", "dog"], [["red cat"], ["dog"]]),
    )
    np.testing.assert_allclose(plain, dressed)


def test_several_references_are_averaged() -> None:
    both = cider(["red cat", "dog"], [["red cat", "blue bird"], ["dog"]])[0]
    # The words and the bigram of "red cat" match it, 3- and 4-grams do not exist, and nothing of "blue bird" matches.
    assert both == pytest.approx(10 * (1 + 1 + 0 + 0) / 4 / 2)


@pytest.mark.parametrize("references", [[["a"]], [["a"], []]])
def test_every_caption_needs_a_reference(references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="every caption needs references"):
        cider(["a", "b"], references)
