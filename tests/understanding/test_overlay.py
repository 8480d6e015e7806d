"""The page of heat maps: its colours, scales and layout."""

import numpy as np
import torch
from PIL import Image

from codebrush.understanding.overlay import (
    GAP,
    LINE,
    PANEL,
    Group,
    Panel,
    colour_map,
    normalised_maps,
    overlay,
    render_page,
)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """Oklab lightness of sRGB (N, 3) uint8 (Ottosson 2020)."""
    encoded = rgb / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array([0.2104542553, 0.7936177850, -0.0040720468])


def test_hotter_is_lighter_all_the_way() -> None:
    light = lightness(colour_map())
    assert colour_map().shape == (256, 3)
    assert light[0] < 0.3
    assert light[-1] > 0.85
    assert np.diff(light).min() > -0.004  # rounding to bytes
    steps = np.abs(np.diff(colour_map().astype(int), axis=0)).sum(1)
    assert steps.max() <= 12  # no jump that would look like an edge


def test_maps_are_scaled_each_by_itself_and_a_flat_one_is_cold() -> None:
    one, flat = normalised_maps([torch.tensor([[1.0, 3.0], [2.0, 1.0]]), torch.full((2, 2), 7.0)])
    assert one.tolist() == [[0, 1], [0.5, 0]]
    assert flat.tolist() == [[0, 0], [0, 0]]


def test_the_hottest_place_takes_the_hottest_colour() -> None:
    heat = np.zeros((8, 8), dtype=np.float32)
    heat[1, 6] = 1
    shown = np.asarray(overlay(Image.new("RGB", (80, 80), "grey"), Panel("", heat=heat, smooth=False)), dtype=float)
    hot, cold = shown[15, 65], shown[70, 5]
    assert np.abs(hot - colour_map()[-1]).sum() < np.abs(hot - colour_map()[0]).sum()
    assert np.abs(cold - colour_map()[0]).sum() < np.abs(cold - colour_map()[-1]).sum()
    assert (shown[10:20, 60:70] == hot).all()
    bare = Image.new("RGB", (80, 80), "red")
    assert overlay(bare, Panel("the picture")) is bare


def test_the_picture_can_be_seen_under_the_heat() -> None:
    base = Image.new("RGB", (80, 80), "white")
    base.paste("black", (0, 0, 40, 80))
    shown = np.asarray(overlay(base, Panel("", heat=np.ones((4, 4), dtype=np.float32))), dtype=float)
    assert np.abs(shown[40, 10] - shown[40, 70]).max() > 20


def test_a_page_has_room_for_every_panel_and_a_bar() -> None:
    heat = np.eye(4, dtype=np.float32)
    panels = [Panel("the picture"), *(Panel("a word " * 20, "adds +0.1", heat) for _ in range(5))]
    picture = Image.new("RGB", (32, 32), "blue")
    sheet = render_page(picture, [Group("What answered to: " + "a word " * 60, panels), Group("codes", panels[:2])])
    assert sheet.width > 4 * PANEL
    assert sheet.height > 3 * PANEL
    pixels = np.asarray(sheet)
    assert (pixels[:, : GAP - 1] == 255).all()  # nothing runs over the edges
    assert (pixels[:, -2:] == 255).all()
    assert (pixels[-2:] == 255).all()
    bar = pixels[:, 4 * (PANEL + GAP) + GAP + 3]
    assert {tuple(colour) for colour in colour_map()[[5, 128, 250]]} <= {tuple(colour) for colour in bar}
    alone = render_page(picture, [Group("one", panels[:1])])
    assert alone.height < GAP + 3 * LINE + PANEL + 2 * GAP + LINE
    assert (np.asarray(alone) == (0, 0, 255)).all(-1).sum() == PANEL**2


def test_a_picture_that_is_not_square_keeps_its_shape() -> None:
    sheet = np.asarray(render_page(Image.new("RGB", (60, 30), "blue"), [Group("one", [Panel("the picture")])]))
    blue = np.argwhere((sheet == (0, 0, 255)).all(-1))
    assert (blue.max(0) - blue.min(0) + 1).tolist() == [PANEL // 2, PANEL]
    assert len(blue) == PANEL * PANEL // 2
