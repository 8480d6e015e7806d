"""How pictures that are not square are fitted to what a CLIP reads, by pixels and by a tower that counts red ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from codebrush import Codebrush
from codebrush.data.picture_fitting import FITS, MAX_TILES, embed_views, padded, tiles, views_for
from codebrush.data.preprocess import pixels_for
from codebrush.errors import UsageError
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip

SIDE = 32


class RedTower(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 2): the share of red pixels, and that of the others."""

    def forward(self, images: Tensor) -> Tensor:
        red = ((images[:, 0] > 0.5) & (images[:, 1] < 0.5)).float().mean((1, 2))
        return torch.stack([red, 1 - red], dim=1)


@pytest.fixture(scope="module")
def micro(micro_pack: Path) -> CLIP:
    return open_clip(micro_pack)[0]


def red_clip(micro: CLIP, resize_mode: Any = "plain") -> CLIP:
    """A CLIP that reads 32 x 32 pixels, and whose embedding says how red they are."""
    image = replace(micro.config.image, image_size=SIDE, embed_dim=2)
    config = replace(
        micro.config, image=image, resize_mode=resize_mode, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )  # fmt: skip
    return CLIP(config, RedTower(), nn.Identity())


def red_at_the_end() -> Image.Image:
    """128 x 32 pixels, white, of which the right quarter is red."""
    picture = Image.new("RGB", (128, 32), "white")
    picture.paste((255, 0, 0), (96, 0, 128, 32))
    return picture


def redness(clip: CLIP, picture: Image.Image, fit: Any) -> float:
    """The tangent of the angle towards red: red pixels for each other one."""
    red, other = embed_views(clip, [views_for(clip, picture, fit)])[0].tolist()
    return red / other


def test_what_lies_at_the_end_counts_but_for_crop(micro: CLIP) -> None:
    clip, picture = red_clip(micro), red_at_the_end()
    assert redness(clip, picture, None) == redness(clip, picture, "crop") == 0
    assert redness(clip, picture, "squeeze") == pytest.approx(1 / 3)
    assert redness(clip, picture, "pad") == pytest.approx(1 / 15)  # 8 x 8 of 32 x 32 pixels
    # Seven tiles, 16 pixels apart: five without red, one half red, one red. Their unit vectors are averaged.
    half = 0.5**0.5
    assert redness(clip, picture, "tiles") == pytest.approx((half + 1) / (5 + half))
    upright = picture.transpose(Image.Transpose.ROTATE_90)
    assert redness(clip, upright, "tiles") == pytest.approx((half + 1) / (5 + half))


def test_each_rule_by_its_pixels(micro: CLIP) -> None:
    clip, picture = red_clip(micro), red_at_the_end()
    white, red = (255, 255, 255), (255, 0, 0)

    def columns(fit: Any) -> list[list[tuple[int, ...]]]:
        """The middle row of every view."""
        return [[tuple(view[:, 16, x].tolist()) for x in range(SIDE)] for view in views_for(clip, picture, fit)]

    assert columns("crop") == [[white] * 32]
    assert columns("squeeze")[0][:22] == [white] * 22
    assert columns("squeeze")[0][26:] == [red] * 6
    assert columns("tiles") == [[white] * 32] * 5 + [[white] * 16 + [red] * 16, [red] * 32]
    (view,) = views_for(clip, Image.new("RGB", (128, 32), (0, 0, 255)), "pad")
    assert view[:, :12].eq(255).all()
    assert view[:, 20:].eq(255).all()
    assert view[:, 12:20].flatten(1).T.unique(dim=0).tolist() == [[0, 0, 255]]


def test_the_bars_have_the_colour_that_the_clip_takes_for_nothing(micro: CLIP) -> None:
    mean = (0.2, 0.4, 0.6)
    published = red_clip(micro, "crop")
    published.config = replace(published.config, image_mean=mean)
    (view,) = views_for(published, red_at_the_end(), "pad")
    assert view[:, 0, 0].tolist() == [51, 102, 153]


def test_a_rule_of_its_own_gives_the_pixels_of_the_published_preprocessing(micro: CLIP) -> None:
    picture = Image.radial_gradient("L").resize((90, 41)).convert("P")
    for mode, own, other in (("plain", "crop", "squeeze"), ("crop", "crop", "squeeze"), ("squeeze", "squeeze", "crop")):
        clip = red_clip(micro, mode)
        expected = pixels_for(clip, [picture])
        for fit in (None, own):
            assert torch.equal(views_for(clip, picture, fit).float() / 255, expected)  # pyright: ignore
        assert not torch.equal(views_for(clip, picture, other).float() / 255, expected)  # pyright: ignore
        square = picture.crop((0, 0, 41, 41))
        for fit in ("crop", "tiles"):  # a square is a single tile
            assert torch.equal(views_for(clip, square, fit), views_for(clip, square))  # pyright: ignore


@pytest.mark.parametrize(
    ("size", "spans", "is_own"),
    [
        ((32, 32), [(0, 32)], True),
        ((33, 32), [(0, 32), (1, 33)], True),
        ((48, 32), [(0, 32), (16, 48)], True),
        ((64, 32), [(0, 32), (16, 48), (32, 64)], True),
        ((32 * 8, 32), [(32 * n, 32 * n + 32) for n in range(8)], True),
        ((32 * 16, 32), [(64 * n, 64 * n + 64) for n in range(8)], False),
        ((5, 1), [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (3, 4), (3, 4), (4, 5)], True),
    ],
)
def test_tiles_reach_from_end_to_end(size: tuple[int, int], spans: list[tuple[int, int]], is_own: bool) -> None:
    places = Image.new("I", size)
    places.putdata([x for _ in range(size[1]) for x in range(size[0])])
    for picture in (places, places.transpose(Image.Transpose.ROTATE_270)):  # the same along the other side
        parts, own = tiles(picture, (SIDE, SIDE))
        assert own == is_own
        assert [(part.getextrema()[0], part.getextrema()[1] + 1) for part in parts] == spans  # pyright: ignore
        assert {min(part.size) for part in parts} == {size[1]}


def test_tiles_and_bars_of_a_clip_that_is_not_square() -> None:
    parts, is_own = tiles(Image.new("RGB", (120, 24)), (24, 40))
    assert (is_own, [part.size for part in parts]) == (True, [(40, 24)] * 5)
    parts, is_own = tiles(Image.new("RGB", (40, 48)), (24, 40))  # higher than 24 x 40
    assert (is_own, [part.size for part in parts]) == (True, [(40, 24)] * 3)
    bars = padded(Image.new("RGB", (24, 24), "red"), (24, 40), (0, 0, 9))
    assert [bars.getpixel((x, 12)) for x in (0, 7, 8, 31, 32)] == [(0, 0, 9)] * 2 + [(255, 0, 0)] * 2 + [(0, 0, 9)]


def test_a_strip_costs_no_memory(micro: CLIP) -> None:
    strip = Image.new("L", (3_000_000, 1), 255)
    counts = {fit: len(views_for(red_clip(micro), strip, fit)) for fit in FITS}
    assert counts == {"crop": 1, "pad": 1, "squeeze": 1, "tiles": MAX_TILES}


def test_pictures_with_different_numbers_of_views_are_embedded_as_if_alone(micro: CLIP) -> None:
    pictures = [red_at_the_end(), Image.new("RGB", (9, 9), "red"), red_at_the_end().resize((48, 32))] * 7
    views = [views_for(micro, picture, "tiles") for picture in pictures]
    together = embed_views(micro, views)
    assert together.shape == (21, micro.embed_dim)
    torch.testing.assert_close(together, torch.cat([embed_views(micro, [view]) for view in views]))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(21))
    assert embed_views(micro, []).shape == (0, micro.embed_dim)


def test_an_unknown_rule_is_refused(micro_pack: Path) -> None:
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    for call in (brush.embed_images, lambda pictures, fit: brush.classify(pictures, ["a", "b"], fit=fit)):
        with pytest.raises(UsageError, match="fit must be one of crop, pad, squeeze, tiles, not stretch"):
            call([red_at_the_end()], "stretch")  # pyright: ignore
