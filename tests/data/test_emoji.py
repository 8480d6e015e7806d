import numpy as np
import pytest
from PIL import ImageFont

from codebrush.data.emoji import find_font, known_emoji, write_emoji
from codebrush.data.sources.captioned_images import open_source
from codebrush.errors import DataError, UsageError

try:
    FONT = find_font()
except DataError:
    FONT = None
needs_font = pytest.mark.skipif(FONT is None, reason="no colour-emoji font is installed")


@pytest.fixture(scope="module")
def by_label():
    return {each.label: each for each in known_emoji()}


@pytest.mark.parametrize(
    ("label", "hexcode", "concept", "tone"),
    [
        ("grinning face", "1f600", "1f600", None),
        ("red heart", "2764", "2764", None),
        ("flag: France", "1f1eb-1f1f7", "1f1eb-1f1f7", None),
        ("waving hand: dark skin tone", "1f44b-1f3ff", "1f44b", "dark"),
        ("man mechanic: medium-light skin tone", "1f468-1f3fc-200d-1f527", "1f468-200d-1f527", "medium-light"),
        (
            "handshake: light skin tone, medium-dark skin tone",
            "1faf1-1f3fb-200d-1faf2-1f3fe",
            "1faf1-200d-1faf2",
            "light+medium-dark",
        ),
    ],
)
def test_labels_and_codes(by_label, label, hexcode, concept, tone):
    each = by_label[label]
    assert (each.hexcode, each.concept, each.skin_tone) == (hexcode, concept, tone)


def test_every_emoji_is_known_once(by_label):
    everything = list(known_emoji())
    assert len(everything) > 3500
    assert len({each.hexcode for each in everything}) == len(everything)
    assert not [label for label in by_label if "_" in label or ":" in label.replace(": ", "")]


@needs_font
def test_drawn_emoji_are_a_source(tmp_path):
    calls = []
    count = write_emoji(tmp_path / "emoji", 32, limit=60, progress=lambda *call: calls.append(call))
    assert count == 60
    assert len(calls) >= 60
    source = open_source(tmp_path / "emoji", captions=["{label}"])
    assert len(source) == 60
    assert source.image(0).size == (32, 32)
    assert source.row(0)["font"] == FONT.stem
    blank = [source.name(i) for i in range(60) if np.asarray(source.image(i)).std() == 0]
    assert blank == []
    with pytest.raises(DataError, match="already exists"):
        write_emoji(tmp_path / "emoji", 32, limit=1)


@needs_font
def test_drawn_emoji_look_as_they_are_called(tmp_path, by_label):
    from codebrush.data.emoji import EmojiFont

    emoji_font = EmojiFont(FONT)
    for label, colour in (("red square", (220, 60, 50)), ("blue square", (20, 140, 220))):
        picture = emoji_font.draw(by_label[label].text)
        middle = picture.getpixel((picture.width // 2, picture.height // 2))
        assert np.abs(np.subtract(middle, colour)).max() < 70, label
        assert picture.getpixel((0, 0)) == (255, 255, 255)


@needs_font
def test_what_the_font_lacks_is_left_out(by_label):
    from codebrush.data.emoji import UNASSIGNED, EmojiFont

    emoji_font = EmojiFont(FONT)
    assert emoji_font.draw(UNASSIGNED) is None
    assert emoji_font.draw("\U0001f600\U0001f600") is None


def test_missing_font_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="apt-get install fonts-noto-color-emoji"):
        find_font([str(tmp_path), str(tmp_path / "gone")])
    with pytest.raises(DataError, match=r"gone\.ttf: cannot be used as a font"):
        write_emoji(tmp_path / "emoji", font=tmp_path / "gone.ttf")


def test_a_font_without_colour_is_refused(tmp_path):
    font = ImageFont.load_default(size=20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    (tmp_path / "plain.ttf").write_bytes(font.font_bytes)
    with pytest.raises(DataError, match=r"plain\.ttf: draws no coloured emoji"):
        write_emoji(tmp_path / "emoji", font=tmp_path / "plain.ttf")
    assert not (tmp_path / "emoji").exists()


@pytest.mark.parametrize("options", [{"size": 4}, {"limit": 0}])
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(UsageError, match="an emoji needs"):
        write_emoji(tmp_path / "emoji", **options)
