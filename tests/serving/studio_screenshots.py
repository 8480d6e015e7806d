"""Takes the pictures of docs/studio.md with an installed Chromium: python tests/serving/studio_screenshots.py [TAB]

It starts a server of the built-in pack, paints, and saves docs/pictures/studio-TAB-*.png. Needs the extras studio and
dev. A tab is added to TABS with what is done in it before its picture is taken.
"""

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from server_thread import running
from studio_browser import browser_path, fill, launched, opened, paint

from codebrush import Codebrush
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.data.synthetic.shapes import scene

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
SIZES = {"": {"width": 1280, "height": 860}, "-phone": {"width": 390, "height": 844}}
COLOURS = 200  # of the saved pictures, which keeps them small
SECONDS = 600
DRAWINGS = 24  # in the library


def painted(page: Any) -> None:
    """Two pictures of a red apple."""
    page.get_by_label("Random seed").uncheck()
    opened(page, "Sampling")
    fill(page, rerank=8, seed=7, pictures=4)
    opened(page, "Sampling")
    paint(page, "a red apple")
    page.locator(".cb-picture").first.wait_for()


def queued(page: Any) -> None:
    """What was painted before."""
    page.get_by_role("tab", name="Queue").click()
    page.locator(".cb-job").first.wait_for()


def _chosen(page: Any, tab: str, field: str) -> None:
    """A tab, and in its field the file of a picture, which is at hand without being painted first."""
    page.get_by_role("tab", name=tab).click()
    file = io.BytesIO()
    scene(3, 1, 256).image.save(file, "PNG")
    sent = {"name": "shapes.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.locator(f"{field} input[type=file]").set_input_files(sent)
    page.locator(f"{field} img").wait_for()


def edited(page: Any) -> None:
    """A mask that is painted over a picture."""
    _chosen(page, "Edit", "#edit-source")
    canvas = page.locator(".cb-canvas canvas")
    canvas.wait_for()
    page.wait_for_timeout(2000)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"], steps=6)
    page.mouse.up()
    page.locator("#edit-prompt textarea").fill("a blue square")


def understood(page: Any) -> None:
    """Which of some labels fits a picture."""
    _chosen(page, "Understand", "#understand-picture")
    page.locator("#tab-understand").get_by_label("Classify", exact=True).check()
    page.locator("#labels textarea").fill("a circle\na square\na triangle\na dog")
    page.locator("#understand-go").click()
    page.locator("#found .cb-bars").wait_for()


def searched(page: Any) -> None:
    """What is found in a folder that is indexed first."""
    page.get_by_role("tab", name="Search").click()
    page.locator("#index-go").click()
    page.get_by_text(f"{DRAWINGS} pictures indexed").wait_for()
    page.locator("#search-words textarea").fill("a red star")
    page.locator("#search-words textarea").press("Control+Enter")
    page.locator("#search-results .cb-picture").first.wait_for()


def trained(page: Any) -> None:
    """What a training would find in a folder."""
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-check").click()
    page.get_by_text(f"{DRAWINGS} captioned pictures, such as").wait_for()


TABS: dict[str, Callable[[Any], None]] = {
    "paint": painted, "edit": edited, "understand": understood, "search": searched, "train": trained, "queue": queued
}  # fmt: skip


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The URL of a server that is removed afterwards."""
    folder = Path(tempfile.mkdtemp())
    brush, drawings = Codebrush.from_pretrained("emoji", device="cpu"), folder / "library" / "drawings"
    write_shapes(drawings, DRAWINGS, size=64, objects=1)
    try:
        with running(brush, folder / "data", "emoji", page=True, libraries=(drawings,)) as (url, _):
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(shot: bytes, name: str) -> None:
    """A screenshot in few colours."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS)
    picture.save(PICTURES / f"{name}.png", optimize=True)
    print(name, (PICTURES / f"{name}.png").stat().st_size // 1024, "kB")


def main(names: list[str]) -> None:
    """Take the pictures of the tabs `names`, or of all."""
    path = browser_path()
    assert path is not None, "no browser is installed"
    with served() as url, launched(path) as browser:
        page = browser.new_context(viewport=SIZES[""]).new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.goto(url)
        for name in names or TABS:
            TABS[name](page)
            page.wait_for_timeout(1500)
            for suffix, size in SIZES.items():
                page.set_viewport_size(size)
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme=scheme)
                    page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
                    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                    page.wait_for_timeout(800)
                    save(page.screenshot(), f"studio-{name}{suffix}-{scheme}")


if __name__ == "__main__":
    main(sys.argv[1:])
