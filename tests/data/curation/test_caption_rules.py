"""Rules for the length and the script of captions."""

import pytest

from codebrush.data.curation.caption_rules import CaptionRules, ngrams, normalised, read_phrases, script_share, words_of
from codebrush.errors import UsageError


@pytest.mark.parametrize(
    ("caption", "fault"),
    [
        ("two words", None),
        ("one", "caption too short"),
        ("- & !", "caption too short"),
        ("one two three four", None),
        ("one two three four five", "caption too long"),
        ("abcdefghijklmnopqrst uvwxyzabcdefghijk", "caption too long"),
        ("красный круг", "caption in another script"),
        ("rød grød med fløde", "caption in another script"),
        ("a café in Paris", None),
        ("24 48", "caption in another script"),
    ],
)
def test_rules(caption: str, fault: str | None):
    assert CaptionRules(min_words=2, max_words=4, max_chars=30, language="en").fault(caption) == fault


def test_without_rules_every_word_will_do():
    assert CaptionRules().fault("猫") is None
    assert CaptionRules().fault("7") is None


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("latin", "rød grød"),
        ("latin", "a plain cat"),
        ("cyrillic", "красный круг"),
        ("greek", "κόκκινος κύκλος"),
        ("arabic", "دائرة حمراء"),
        ("hebrew", "עיגול אדום"),
        ("devanagari", "लाल वृत्त"),
        ("thai", "วงกลมสีแดง"),
        ("ko", "빨간 원"),
        ("zh", "红色圆圈"),
        ("ja", "赤い丸とカップ、ｶｯﾌﾟ"),
    ],
)
def test_scripts(language: str, text: str):
    assert script_share(text, language) == 1
    assert script_share(text, "cyrillic" if language != "cyrillic" else "greek") == 0


def test_the_share_counts_letters_alone():
    assert script_share("кот cat 123 !?", "cyrillic") == 0.5
    assert script_share("123", "en") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_words": -1}, "min-words is -1; it must be 0 or more"),
        ({"min_words": 3, "max_words": 2}, "no caption has 3 to 2 words"),
        ({"language": "xx"}, "the language xx is unknown; known are en, latin"),
    ],
)
def test_rules_out_of_range(change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        CaptionRules(**change)


def test_words():
    assert words_of("Don't: THE_Cat’s  2nd ﬁsh-bowl!") == ["don't", "the", "cat’s", "2nd", "fish", "bowl"]
    assert normalised("  A Red-Circle ") == "a red circle"
    assert normalised(" !? ") == "!?"
    assert list(ngrams(["a", "b", "c"], 2)) == ["a", "b", "c", "a b", "b c"]


def test_phrases_are_read_once():
    assert read_phrases(["Red Circle", "", "# shapes", "red-circle", "dog"]) == ["red circle", "dog"]
