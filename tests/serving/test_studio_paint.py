"""The tab Paint in a real browser: it paints what the command line would, shows progress, cancels, restores."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

from studio_browser import downloaded

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image, read_manifest


def test_ctrl_enter_paints_what_the_command_line_would(page: Any, tmp_path: Path) -> None:
    page.get_by_label("Random seed").uncheck()
    page.get_by_role("button", name="Sampling").click()
    page.get_by_label("Rerank").fill("2")
    page.locator("#prompt textarea").fill("a red apple")
    page.get_by_label("Seed", exact=True).fill("7")
    page.locator("input[type=number][aria-label*=Pictures]").fill("1")
    page.locator("#prompt textarea").press("Control+Enter")
    page.locator(".cb-progress").wait_for()
    page.locator(".cb-picture").wait_for()
    (tmp_path / "apple.png").write_bytes(downloaded(page))
    expected = Codebrush.from_pretrained("emoji", device="cpu").generate("a red apple", n=1, rerank=2, seed=7)[0]
    assert decode_image(tmp_path / "apple.png").tobytes() == expected.image.tobytes()
    assert read_manifest(tmp_path / "apple.png")["options"]["rerank"] == 2
