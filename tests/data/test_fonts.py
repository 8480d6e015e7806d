"""Fonts for captions in any script: one that has the letters, the order of right-to-left text, and what is missing."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from codebrush.data import fonts
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.fonts import FONT_FOLDERS, fonts_for, missing_letters, visual_order

HEBREW, CHINESE = "\u05e9\u05dc\u05d5\u05dd", "\u82f9\u679c"  # shalom; apple
DEJAVU = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Sets which fonts count as installed."""

    def install(*files: Path) -> None:
        monkeypatch.setattr(fonts, "_font_files", lambda: files)

    return install


def test_captions_in_the_built_in_font_need_no_other(installed) -> None:
    installed(Path("no such font.ttf"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (font, same) = fonts_for(["a cat, 12:30", ""], 12)
    assert font.getname() == same.getname() == ImageFont.load_default(12).getname()  # pyright: ignore


def test_letters_of_no_font_are_told_in_one_line(installed) -> None:
    installed()
    told = r"^2 letters of 3 captions drawn as boxes, as no font that was found has them: .*fonts-noto-cjk for Chinese"
    with pytest.warns(UserWarning, match=told) as caught:
        fonts_for([CHINESE, "a cat", CHINESE[0], CHINESE + " x"], 12)
    assert len(caught) == 1
    assert missing_letters(ImageFont.load_default(12), f"a {CHINESE}\u200d\ufe0f") == set(CHINESE)


@pytest.mark.skipif(not DEJAVU.exists(), reason="DejaVu is not installed")
def test_a_font_that_has_the_letters_is_taken(installed, tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(tmp_path / "broken.ttf", DEJAVU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, hebrew = fonts_for(["a cat", HEBREW], 12)
        sheet = contact_sheet([Image.new("RGB", (128, 128), "red")], [HEBREW])
    assert hebrew.getname() == ("DejaVu Sans", "Book")  # pyright: ignore
    assert plain.getname() != hebrew.getname()  # pyright: ignore
    assert not missing_letters(hebrew, HEBREW)
    installed()
    with pytest.warns(UserWarning, match="^4 letters of 1 caption drawn as boxes"):
        boxes = contact_sheet([Image.new("RGB", (128, 128), "red")], [HEBREW])
    assert sheet.size == boxes.size
    assert (np.asarray(sheet) != np.asarray(boxes)).any()


def test_the_families_that_are_looked_for_come_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["DejaVuSans.ttf", "NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc", "Wingdings.ttf", "NotoSans.woff"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(tmp_path), str(tmp_path / "none")))
    found = fonts._font_files.__wrapped__()
    assert [file.name for file in found] == ["NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", "DejaVuSans.ttf"]
    assert "/usr/share/fonts" in FONT_FOLDERS


def test_right_to_left_text_without_a_text_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visual_order("a cat") == "a cat"
    monkeypatch.setattr(fonts.features, "check", lambda name: False)
    turned = HEBREW[::-1]
    assert visual_order(f"{HEBREW} {CHINESE}") == f"{CHINESE} {turned}"
    assert visual_order(f"{HEBREW} red cat {HEBREW}x 12:30") == f"12:30 x{turned} red cat {turned}"
    assert visual_order(f"0.345 {HEBREW} {HEBREW[:2]}") == f"{HEBREW[1::-1]} {turned} 0.345"
    assert visual_order(f"a cat {HEBREW}") == f"a cat {HEBREW}"
    monkeypatch.setattr(fonts.features, "check", lambda name: True)
    assert visual_order(f"{HEBREW} red") == f"{HEBREW} red"
