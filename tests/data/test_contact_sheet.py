"""Contact sheets: every picture and caption is visible and in its cell."""

import numpy as np
import pytest
from PIL import Image

from codebrush.data.contact_sheet import contact_sheet
from codebrush.errors import CodebrushError


def test_contact_sheet_lays_out_pictures_and_captions():
    pictures = [Image.new("RGB", (128, 128), colour) for colour in ("red", "lime", "blue")]
    bare = contact_sheet(pictures, columns=2)
    assert bare.size == (8 + 2 * 136, 8 + 2 * 136)
    assert [bare.getpixel(place) for place in ((70, 70), (206, 70), (70, 206))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    assert bare.getpixel((140, 70)) == bare.getpixel((4, 4)) == (255, 255, 255)
    captioned = contact_sheet(pictures, ["a red square", "lime " * 60, ""], columns=2)
    below = np.asarray(captioned.crop((8, 137, 136, 180)).convert("L"))
    assert below.min() < 100
    right_of = np.asarray(captioned.crop((137, 8, 144, 180)))
    assert (right_of == 255).all(), "a caption runs over its cell"


def test_contact_sheet_enlarges_the_small_and_reduces_the_huge():
    assert contact_sheet([Image.new("RGB", (32, 32), "red")]).size == (112, 112)
    assert contact_sheet([Image.new("RGB", (2000, 1000), "red")]).size == (528, 272)


def test_transparent_pictures_are_shown_over_white():
    clear = Image.new("RGBA", (96, 96), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 48, 96))
    sheet = np.asarray(contact_sheet([clear, clear.resize((8, 8), Image.Resampling.NEAREST)]))
    assert (sheet[20, 20] == (0, 0, 255)).all()
    assert not (sheet == (255, 0, 0)).all(-1).any()


def test_contact_sheet_of_nothing():
    with pytest.raises(CodebrushError, match="at least one"):
        contact_sheet([])
