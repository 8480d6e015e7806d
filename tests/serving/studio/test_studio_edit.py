"""The tab Edit in a real browser: a mask that is painted with the mouse, what stays as it was, and restoring."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

from PIL import Image
from studio_browser import downloaded

from codebrush.data.decoding.images import read_manifest
from codebrush.data.synthetic.shapes import scene

BORDER = 12  # pixels around what was painted that are blended


def painted_over(page: Any, left: float, top: float, right: float, bottom: float) -> None:
    """A stroke from one place to another, as shares of the picture."""
    canvas = page.locator(".cb-canvas canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=6)
    page.mouse.up()


def test_a_painted_part_changes_and_the_rest_stays(page: Any, tmp_path: Path) -> None:
    photo, made = tmp_path / "photo.jpg", tmp_path / "made.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its side: upright it is 120 x 160
    scene(0, 1, 160).image.crop((0, 0, 160, 120)).save(photo, exif=exif, quality=95)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-source input[type=file]").set_input_files(photo)
    page.wait_for_function(
        "document.querySelector('.cb-canvas canvas').height > document.querySelector('.cb-canvas canvas').width"
    )
    painted_over(page, 0.25, 0.25, 0.4, 0.25)
    page.wait_for_function("document.querySelector('#mask-data textarea').value.length > 100")
    page.locator("#tab-edit").get_by_role("button", name="Sampling").click()
    page.locator("#tab-edit").get_by_label("Rerank").fill("1")
    page.locator("#tab-edit input[type=number][aria-label*=Pictures]").fill("1")
    page.locator("#edit-prompt textarea").fill("a red apple")
    page.locator("#edit-prompt textarea").press("Control+Enter")
    page.locator("#tab-edit .cb-picture").wait_for()
    made.write_bytes(downloaded(page.locator("#tab-edit").page))
    before = np.asarray(Image.open(photo).transpose(Image.Transpose.ROTATE_270), dtype=int)
    after = np.asarray(Image.open(made), dtype=int)
    assert before.shape == after.shape == (160, 120, 3)
    changed = np.argwhere((before != after).any(-1))
    radius = 0.16 * 120 / 2 + BORDER  # the brush is 16 % of the shorter side
    assert len(changed) > 100
    assert (changed.min(0) >= [40 - radius, 30 - radius]).all()
    assert (changed.max(0) <= [40 + radius, 48 + radius]).all()
    manifest = read_manifest(made)
    assert (manifest["method"], manifest["edit"]["prompt"], manifest["options"]["rerank"]) == (
        "inpaint",
        "a red apple",
        1,
    )
    page.reload()
    page.locator("#prompt textarea").wait_for()
    page.locator("#header input[type=file]").set_input_files(made)  # the button "Open a picture"
    page.locator("#notice").get_by_text("This is how the picture was made").wait_for()
    assert page.locator("#edit-prompt textarea").input_value() == "a red apple"
    assert page.locator("#tab-edit").get_by_label("Seed", exact=True).input_value() == str(manifest["seed"])
    page.locator(".cb-canvas canvas").wait_for()  # the source came back, as it lies in a job of this caller
    page.locator("#edit-mask-file img").wait_for()
