"""What was transparent in a picture is transparent in what is drawn from it: exact shapes on grounds that are known."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from codebrush.errors import UsageError
from codebrush.generation.transparent_ground import check_transparency, is_transparent, with_transparent_ground

SIDE = 64
RED, WHITE, CLEAR = (200, 30, 40, 255), (255, 255, 255, 255), (255, 255, 255, 0)


def disc(fill: Any, ground: Any, box: tuple[int, int, int, int] = (12, 12, 52, 52)) -> Image.Image:
    """A disc with a soft edge, RGBA; its ground has the same colour over which the models see it."""
    large = Image.new("RGBA", (8 * SIDE, 8 * SIDE), ground)
    ImageDraw.Draw(large).ellipse(tuple(8 * place for place in box), fill=fill)
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def over_white(picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture).convert("RGB")


def before(picture: Image.Image) -> Image.Image:
    seen = over_white(picture)
    seen.putalpha(picture.getchannel("A"))
    return seen


def alpha(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.getchannel("A")).astype(int)


def test_what_comes_back_unchanged_keeps_its_transparency() -> None:
    source = disc(RED, CLEAR)
    done = with_transparent_ground(over_white(source), before(source))
    share = np.asarray(source.getchannel("A")) / 255
    assert (alpha(done)[share == 0] == 0).all()
    assert (alpha(done)[share == 1] == 255).all()
    edge = (share > 0) & (share < 1)
    assert edge.any()
    expected = np.clip((share[edge] - 0.12) / 0.88, 0, 1)
    assert np.abs(alpha(done)[edge] / 255 - expected).max() < 0.03  # 0.01 with the disc's very red
    assert (np.abs(np.asarray(done)[alpha(done) > 0, :3].astype(int) - RED[:3]).max(0) <= 2).all()  # no white fringe


def test_the_ground_is_where_the_new_object_is_not() -> None:
    drawn = over_white(disc((20, 40, 200, 255), CLEAR, (24, 4, 44, 60)))
    done = with_transparent_ground(drawn, before(disc(RED, CLEAR)))
    blue, white = np.asarray(drawn)[..., 0] < 128, np.asarray(drawn)[..., 0] == 255
    for cut in (done, with_transparent_ground(drawn)):  # the same ground from the border, without the picture before
        assert (alpha(cut)[blue] > 100).all()
        assert (alpha(cut)[white] == 0).all()  # also where the red disc was


def test_white_inside_an_object_stays_unless_it_was_transparent() -> None:
    eye = (28, 28, 36, 36)
    drawn = over_white(disc(RED, CLEAR))
    drawn.paste("white", eye)
    closed = before(disc(RED, CLEAR))
    assert (alpha(with_transparent_ground(drawn, closed))[28:36, 28:36] == 255).all()
    assert (alpha(with_transparent_ground(drawn))[28:36, 28:36] == 255).all()
    ring = disc(RED, CLEAR)
    ring.paste(CLEAR, eye)
    done = alpha(with_transparent_ground(drawn, before(ring)))
    assert (done[28:36, 28:36] == 0).all()
    assert (done[20:26, 20:26] == 255).all()


def test_an_object_that_was_white_and_opaque_stays() -> None:
    ghost = disc((250, 250, 250, 255), CLEAR)
    done = with_transparent_ground(over_white(ghost), before(ghost))
    share = np.asarray(ghost.getchannel("A"))
    assert (alpha(done)[share == 255] == 255).all()
    assert (alpha(done)[share == 0] == 0).all()
    assert (alpha(with_transparent_ground(over_white(ghost))) == 0).all()  # without the picture before, nobody can tell


@pytest.mark.parametrize(("level", "cleared"), [(225, True), (222, False), (192, False)])
def test_a_pale_ground_is_cleared_as_far_as_it_was_transparent(level: int, cleared: bool) -> None:
    plain = Image.new("RGB", (SIDE, SIDE), (255, level, 255))
    assert (alpha(with_transparent_ground(plain)) == (0 if cleared else 255)).all()
    glow = alpha(with_transparent_ground(plain, before(Image.new("RGBA", (SIDE, SIDE), CLEAR))))
    assert (glow == 0).all()
    assert (alpha(with_transparent_ground(plain, before(Image.new("RGBA", (SIDE, SIDE), RED)))) == 255).all()


def test_a_dark_drawing_stays_whole() -> None:
    dark = Image.new("RGB", (SIDE, SIDE), (60, 90, 190))
    assert (alpha(with_transparent_ground(dark, before(Image.new("RGBA", (SIDE, SIDE), CLEAR)))) == 255).all()
    assert (np.asarray(with_transparent_ground(dark))[..., :3] == (60, 90, 190)).all()


def test_the_ground_is_what_can_be_reached_around_corners() -> None:
    rows = (  # dark walls; dots are white and joined to the ground on the left, o is white and shut in
        "..########",
        "#......#oo",
        "######.#oo",
        "#......#o#",
        "#......#o#",
        "#......#o#",
        "#......#o#",
    )
    dark = np.array([[letter == "#" for letter in row] for row in rows])
    walls = np.where(dark, 0, 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)  # wider than an edge
    drawn = Image.fromarray(walls).convert("RGB")
    start = Image.new("RGBA", drawn.size, (0, 0, 0, 255))
    start.paste(CLEAR, (0, 0, 1, 1))
    reached = np.array([[letter == "." for letter in row] for row in rows])
    assert ((alpha(with_transparent_ground(drawn, start))[4::8, 4::8] == 0) == reached).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9)])
def test_the_smallest_pictures(size: tuple[int, int]) -> None:
    assert (alpha(with_transparent_ground(Image.new("RGB", size, "white"))) == 0).all()
    assert (alpha(with_transparent_ground(Image.new("RGB", size, "black"))) == 255).all()


def test_whether_a_picture_is_transparent_is_read_from_its_pixels() -> None:
    assert is_transparent(disc(RED, CLEAR))
    assert not is_transparent(disc(RED, WHITE))
    assert not is_transparent(Image.new("RGB", (4, 4)))
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 0
    assert is_transparent(palette)
    with pytest.raises(UsageError, match="transparency is 'half', which this version does not know"):
        check_transparency("half")
