"""Holes in pictures: the window around one, what the network sees of it, and that the rest of the picture stays."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from codebrush.data.hole_filling import fill_holes
from codebrush.errors import ImageError, UsageError
from codebrush.generation.editing.canvas import (
    BORDER,
    boxed_canvas,
    check_extend,
    extended_canvas,
    masked_canvas,
    soft_edge,
    warn_of_blur,
    whole_canvas,
    window_around,
)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(mode)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0], mode)


def red(size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), "red")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_window_holds_the_hole_and_stays_inside_the_picture_if_it_can(data: Any) -> None:
    height, width = (data.draw(st.integers(1, 300)) for _ in range(2))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    tall, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    hole = np.zeros((height, width), dtype=bool)
    hole[top : top + tall, left : left + wide] = True
    x, y, right, bottom = window_around(hole, 64)
    side = right - x
    assert side == bottom - y
    assert x <= left
    assert y <= top
    assert right >= left + wide
    assert bottom >= top + tall
    assert side >= min(64, max(height, width))
    assert side >= max(tall, wide)
    assert side <= max(height, width)
    if side <= width:
        assert x >= 0
        assert right <= width
    if side <= height:
        assert y >= 0
        assert bottom <= height


@pytest.mark.parametrize("size", [(64, 64), (200, 90), (31, 77), (500, 500)])
def test_nothing_changes_away_from_the_hole(size: tuple[int, int]) -> None:
    picture = noise(*size)
    canvas = boxed_canvas(picture, (size[0] // 3, size[1] // 4, size[0] // 4, size[1] // 3), 64)
    done = canvas.finish(red())
    assert done.size == size
    before, after = np.asarray(picture), np.asarray(done)
    assert (after[canvas.hole] == (255, 0, 0)).all()
    border = min(size) // BORDER
    near = soft_edge(canvas.hole, border) > 0
    assert (before[~near] == after[~near]).all()
    rows, columns = np.nonzero(near)
    inside_rows, inside_columns = np.nonzero(canvas.hole)
    assert inside_rows.min() - rows.min() <= min(size) / BORDER
    assert columns.max() - inside_columns.max() <= min(size) / 8


def test_the_border_blends_evenly() -> None:
    hole = np.zeros((40, 40), dtype=bool)
    hole[10:20, 10:20] = True
    weight = soft_edge(hole, 4)
    assert (weight[hole] == 1).all()
    assert np.diff(weight[15, 20:26]).max() <= 0
    assert weight[15, 24] == 0
    assert weight[15, 20] == pytest.approx(0.8)
    assert (soft_edge(hole, 1) == hole).all()


def test_the_network_sees_nothing_of_what_was_in_the_hole() -> None:
    clean = noise(100, 100)
    dirty = clean.copy()
    dirty.paste("lime", (40, 40, 70, 60))
    views = [boxed_canvas(each, (40, 40, 30, 20), 64).view(32) for each in (clean, dirty)]
    assert torch.equal(views[0][0], views[1][0])
    assert torch.equal(views[0][1], views[1][1])
    pixels, share = views[0]
    assert pixels.shape == (3, 32, 32)
    assert share.shape == (32, 32)
    assert share.max() == 1
    assert share.min() == 0


def test_a_reduced_window_shows_nothing_of_its_hole_either() -> None:
    clean = Image.new("RGB", (3000, 2000), "navy")
    dirty = clean.copy()
    dirty.paste("yellow", (200, 300, 2600, 1500))
    pixels, share = boxed_canvas(dirty, (200, 300, 2400, 1200), 64).view(64)
    assert (pixels - torch.tensor([0, 0, 128 / 255])[:, None, None]).abs().max() < 0.03
    assert 0.2 < share.mean() < 0.95


def test_a_hole_is_filled_with_what_is_near() -> None:
    pixels = torch.zeros(3, 32, 32)
    pixels[0, :, :16] = 1  # red at the left, blue at the right
    pixels[2, :, 16:] = 1
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[8:24, 4:28] = True
    filled = fill_holes(pixels, hole)
    assert torch.equal(filled[:, ~hole], pixels[:, ~hole])
    assert filled[0, 16, 5] > 0.8
    assert filled[2, 16, 26] > 0.8
    assert filled.min() >= 0
    assert filled.max() <= 1 + 1e-6
    assert torch.equal(fill_holes(pixels, torch.ones_like(hole)), torch.full_like(pixels, 0.5))


def test_a_picture_is_extended_on_any_side() -> None:
    picture = noise(60, 40)
    canvas = extended_canvas(picture, {"left": 20, "bottom": 8}, 64)
    assert canvas.image.size == (80, 48)
    assert canvas.hole.sum() == 80 * 48 - 60 * 40
    done = np.asarray(canvas.finish(red()))
    kept = np.asarray(picture)
    border = 48 // BORDER
    assert (done[: 40 - border, 20 + border :] == kept[: 40 - border, border:]).all()
    assert (done[canvas.hole] == (255, 0, 0)).all()


def test_transparency_is_kept_and_the_hole_is_opaque() -> None:
    picture = noise(64, 64, "RGBA")
    canvas = boxed_canvas(picture, (10, 10, 20, 20), 64)
    done = canvas.finish(red())
    assert done.mode == "RGBA"
    after, before = np.asarray(done), np.asarray(picture)
    assert (after[canvas.hole] == (255, 0, 0, 255)).all()
    assert (after[canvas.weight == 0] == before[canvas.weight == 0]).all()
    border = (canvas.weight > 0) & ~canvas.hole
    assert border.any()
    assert (after[border, 3] >= before[border, 3]).all()


def test_a_drawing_with_a_transparent_ground_leaves_it_transparent() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    picture.paste((0, 255, 0, 255), (0, 0, 64, 32))
    canvas = boxed_canvas(picture, (10, 10, 44, 44), 64)
    drawn = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    drawn.paste((255, 0, 0, 255), (0, 20, 64, 64))
    after = np.asarray(canvas.finish(drawn))
    assert (after[22:54, 10:54] == (255, 0, 0, 255)).all()
    assert (after[10:18, 10:54, 3] == 0).all()  # opaque before, and now ground
    assert (after[canvas.weight == 0] == np.asarray(picture)[canvas.weight == 0]).all()


def test_the_window_before_is_seen_over_white_and_black_in_the_hole() -> None:
    picture = Image.new("RGBA", (32, 32), (9, 9, 9, 0))
    picture.paste((200, 30, 40, 255), (0, 0, 32, 8))
    before = np.asarray(boxed_canvas(picture, (0, 4, 16, 12), 32).before(32))
    assert (before[:4] == (200, 30, 40, 255)).all()
    assert (before[4:16, :16, :3] == 0).all()
    assert (before[8:, 16:] == (255, 255, 255, 0)).all()
    assert (before[8:16, :16, 3] == 0).all()  # what is transparent in the hole is known
    added = np.asarray(extended_canvas(picture, {"right": 32}, 32).before(64))
    assert (added[:, 40:, 3] == 255).all()  # not what is new
    assert boxed_canvas(picture.convert("RGB"), (0, 4, 16, 12), 32).before(32) is None


def test_transparent_pixels_lend_no_colour_to_the_border() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    canvas = boxed_canvas(picture, (10, 10, 20, 20), 64)
    after = np.asarray(canvas.finish(red()))
    assert (after[canvas.weight > 0, :3] == (255, 0, 0)).all()
    assert (after[canvas.weight == 0] == (0, 255, 0, 0)).all()


def test_a_colour_profile_stays() -> None:
    picture = noise(64, 64)
    picture.info["icc_profile"] = b"profile"
    assert boxed_canvas(picture, (10, 10, 20, 20), 64).finish(red()).info["icc_profile"] == b"profile"


def test_a_soft_edge_equals_a_naive_loop() -> None:
    hole = np.zeros((60, 90), dtype=bool)
    hole[20:30, 40:60] = True
    weight = soft_edge(hole, 6)
    slow = np.zeros_like(weight)
    grown = np.zeros_like(hole)
    grown[17:33, 37:63] = True
    for row, column in np.ndindex(*slow.shape):
        slow[row, column] = grown[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4].mean()
    np.testing.assert_allclose(weight, np.where(hole, 1, slow), atol=1e-6)


def test_a_mask_is_white_where_the_picture_changes(tmp_path: Path) -> None:
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (10, 5, 20, 15))
    mask.save(tmp_path / "mask.png")
    noise(64, 48).save(tmp_path / "picture.png")
    canvas = masked_canvas(tmp_path / "picture.png", tmp_path / "mask.png", 64)
    assert canvas.hole.sum() == 100
    assert canvas.hole[5:15, 10:20].all()
    layer = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    layer.paste("white", (10, 5, 20, 15))
    assert (masked_canvas(tmp_path / "picture.png", layer, 64).hole == canvas.hole).all()  # paint on a clear layer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: masked_canvas(noise(64, 48), Image.new("L", (48, 64), 255), 64),
            "the mask has 48 x 64 pixels and the",
        ),
        (lambda: masked_canvas(noise(64, 48), Image.new("L", (64, 48), 0), 64), "the mask is empty"),
        (lambda: masked_canvas(noise(64, 48), Image.new("L", (64, 48), 255), 64), "the mask covers the whole picture"),
        (lambda: boxed_canvas(noise(1, 1), (0, 0, 1, 1), 64), "the mask covers the whole picture"),
        (lambda: boxed_canvas(noise(64, 48), (70, 0, 5, 5), 64), "lies outside the picture of 64 x 48 pixels"),
        (
            lambda: extended_canvas(noise(64, 48), {"up": 3}, 64),
            "extend takes the pixels to add on left, top, right, bottom",
        ),
        (lambda: extended_canvas(noise(64, 48), {"left": -3}, 64), "none below 0, and not all 0"),
        (lambda: extended_canvas(noise(64, 48), {}, 64), "extend takes the pixels"),
        (lambda: extended_canvas(noise(64, 48), {"left": 10**7}, 64), "too large: extend by less"),
        (
            lambda: check_extend(noise(64, 48), {"left": 500, "right": 13}),
            "adds 513 pixels at left and right to 64, of",
        ),
        (lambda: check_extend(noise(64, 48), {"top": 385}), "at top and bottom to 48, .*: add at most 384 at a time"),
    ],
)
def test_a_hole_that_cannot_be_painted_is_one_line(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_as_much_may_be_added_as_leaves_something_to_go_on_with() -> None:
    check_extend(noise(64, 48), {"left": 512, "top": 384})


def test_a_part_that_is_enlarged_a_lot_is_announced() -> None:
    with pytest.warns(UserWarning, match="drawn as 64 x 64 pixels and enlarged to 300 x 300, so it will be blurred"):
        warn_of_blur(boxed_canvas(noise(300, 260), (0, 0, 257, 10), 64), 32 * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_blur(boxed_canvas(noise(300, 260), (0, 0, 150, 150), 64), 64)


def test_a_file_that_is_not_a_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        boxed_canvas(tmp_path / "broken.png", (0, 0, 5, 5), 64)


@pytest.mark.parametrize("size", [(1, 2), (20_000, 3), (3, 20_000)])
def test_odd_pictures_have_holes_too(size: tuple[int, int]) -> None:
    picture = noise(*size)
    canvas = boxed_canvas(picture, (0, 0, max(1, size[0] // 2), max(1, size[1] // 2)), 64)
    assert canvas.view(64)[0].shape == (3, 64, 64)
    assert canvas.finish(red()).size == size
    larger = extended_canvas(noise(1, 1), {"right": 7}, 64)
    assert larger.finish(red()).size == (8, 1)


def test_without_a_hole_the_window_is_the_middle() -> None:
    canvas = whole_canvas(noise(90, 40))
    assert canvas.box == (25, 0, 65, 40)
    assert not canvas.hole.any()
    assert canvas.view(32)[0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("box", "inside"), [((50, 40, 20, 20), "14 x 8"), ((-5, -6, 10, 10), "5 x 4"), ((-1, 10, 100, 4), "64 x 4")]
)
def test_a_box_that_reaches_beyond_the_picture_says_what_is_painted(
    box: tuple[int, int, int, int], inside: str
) -> None:
    with pytest.warns(UserWarning, match=f"reaches beyond the picture of 64 x 48 pixels: {inside} pixels of it are"):
        canvas = boxed_canvas(noise(64, 48), box, 16)
    assert canvas.hole.sum() == int(inside.split()[0]) * int(inside.split()[2])


@pytest.mark.parametrize("box", [(0, 0, 64, 20), (44, 28, 20, 20)])
def test_a_box_inside_the_picture_needs_no_word(box: tuple[int, int, int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxed_canvas(noise(64, 48), box, 16)
