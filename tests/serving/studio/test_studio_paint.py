"""The tabs Paint and Queue in a real browser: painting, progress, cancelling, restoring, phones, several windows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

pytest.importorskip("playwright", reason="needs playwright")

from PIL import Image
from playwright.sync_api import expect
from studio_browser import PHONE, SECONDS, choose, downloaded, drop, expect_value, fill, opened, paint, png

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image, read_manifest, save_png

expect.set_options(timeout=1000 * SECONDS)


@pytest.fixture(scope="module")
def brush() -> Codebrush:
    return Codebrush.from_pretrained("emoji", device="cpu")


def test_ctrl_enter_paints_what_the_command_line_would(page: Any, brush: Codebrush, tmp_path: Path) -> None:
    page.get_by_label("Random seed").uncheck()
    opened(page, "Sampling")
    fill(page, rerank=2, seed=7, pictures=1)
    paint(page, "a (red:1.3) apple, <lora:film:0.8>")
    page.locator(".cb-progress progress").wait_for()
    page.locator(".cb-picture").wait_for()
    assert page.get_by_text("<lora:film:0.8>").count() == 1
    file = tmp_path / "apple.png"
    file.write_bytes(downloaded(page))
    expected = brush.generate("a red apple | red:0.3", n=1, rerank=2, seed=7)[0]
    assert decode_image(file, keep_mode=True).tobytes() == expected.image.tobytes()
    assert page.locator(".cb-settings").inner_text().count("a red apple | red:0.3") == 1
    page.get_by_role("button", name="Upscale 2x").click()
    page.locator(".cb-settings").get_by_text("256x256").wait_for()
    file.write_bytes(downloaded(page))
    assert decode_image(file).size == (256, 256)
    assert len(read_manifest(file)["upscaled"]) == 1
    page.get_by_role("button", name="Back to the pictures before").click()
    page.locator(".cb-settings").get_by_text("128x128").wait_for()
    file.write_bytes(downloaded(page))
    assert decode_image(file).size == (128, 128)


def test_a_guided_run_is_seen_and_cancelled_and_stands_in_the_queue(page: Any) -> None:
    choose(page, "Method", "guide")
    fill(page, steps=300)
    opened(page, "Guidance")
    choose(page, "Init", "random")
    opened(page, "Cutouts")
    fill(page, cutouts=2)
    paint(page, "a blue star")
    page.locator(".cb-curve polyline").wait_for()
    page.locator(".cb-progress .cb-grid img").wait_for()
    assert page.locator("#paint-go").is_disabled()
    page.get_by_role("button", name="Cancel", exact=True).first.click()
    page.get_by_role("alert").get_by_text("Cancelled.").wait_for()
    assert page.locator("#paint-go").is_enabled()
    page.get_by_role("tab", name="Queue").click()
    first = page.locator(".cb-job").first
    first.get_by_text("Paint: a blue star").wait_for()
    assert "Cancelled" in first.inner_text()


@pytest.mark.slow  # test_studio_restoring has what each manifest restores, the next test what is dropped
def test_a_dropped_picture_restores_what_it_was_made_with(page: Any, brush: Codebrush, tmp_path: Path) -> None:
    made = brush.generate("a purple heart", style="noto", n=2, rerank=2, seed=11, negative_prompt="blurry", cfg=2.5)[1]
    save_png(made.image, tmp_path / "heart.png", made.manifest)
    page.get_by_role("tab", name="Queue").click()
    drop(page, (tmp_path / "heart.png").read_bytes())
    page.get_by_text("This is how the picture was made.").wait_for()
    prompt = page.locator("#prompt textarea")
    prompt.wait_for()  # the tab Paint is shown
    assert prompt.input_value() == "a purple heart | blurry:-0.5"
    assert page.get_by_label("Style", exact=True).input_value() == "noto"
    assert page.get_by_label("Seed", exact=True).input_value() == "11"
    assert not page.get_by_label("Random seed").is_checked()
    prompt.press("Control+Enter")
    page.locator(".cb-picture").nth(1).click()
    page.locator(".cb-settings").get_by_text(str(made.manifest["index"]), exact=True).first.wait_for()
    page.locator(".cb-large figcaption").get_by_text("Picture 2").wait_for()
    again = decode_image(downloaded(page), keep_mode=True)
    assert again.tobytes() == made.image.tobytes()


def test_a_picture_of_others_is_said_and_offered(page: Any) -> None:
    opened(page, "Sampling")
    page.get_by_label(re.compile(r"^\s*CFG\b")).first.fill("2")
    drop(page, png(Image.new("RGB", (64, 48), "red")))
    page.get_by_text("does not say how it was made").wait_for()
    page.get_by_role("button", name="Use as start").first.click()
    page.locator(".takes-pictures img").first.wait_for(state="attached")
    expect_value(page.get_by_label("Method", exact=True), "guide")
    expect(page.get_by_label(re.compile(r"^\s*CFG\b")).first).to_have_value("")  # guidance would refuse it
    drop(page, b"no picture at all")
    page.locator("#notice").get_by_text("not a picture").wait_for()
    drop(page, b"words", name="words.txt", type="text/plain")
    page.locator(".cb-told").get_by_text("This is no picture").wait_for()


def test_windows_do_not_see_each_other(page: Any, studio: tuple[str, Any], visit: Callable[..., Any]) -> None:
    other = visit(studio[0])
    for window, prompt in ((page, "a red circle"), (other, "a green square")):
        opened(window, "Sampling")
        fill(window, rerank=1, pictures=1)
        paint(window, prompt)
    for window, prompt in ((page, "a red circle"), (other, "a green square")):
        window.locator(".cb-picture").wait_for()
        assert window.locator(".cb-settings").get_by_text(prompt, exact=True).count() == 1
        assert window.locator(".cb-picture").count() == 1


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_phone_has_nothing_beyond_its_edge(studio: tuple[str, Any], visit: Callable[..., Any], scheme: str) -> None:
    page = visit(studio[0], viewport=PHONE, color_scheme=scheme)
    for name in ("Sampling", "Guidance"):
        opened(page, name)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= PHONE["width"]
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    unnamed = page.locator("input, textarea, button, select").evaluate_all(
        """all => all.filter(each => each.checkVisibility() && !each.labels?.length && !each.ariaLabel
          && !each.innerText.trim() && !each.title && !each.hasAttribute("aria-labelledby"))
          .map(each => each.outerHTML)"""
    )
    assert unnamed == []
    page.get_by_role("tab", name="Queue").click()
    page.locator(".cb-jobs, .cb-note").first.wait_for()
    assert page.evaluate(wide) <= PHONE["width"]


def test_the_numbers_at_the_ends_of_sliders_are_whole(page: Any) -> None:
    for name in ("Sampling", "Guidance"):
        opened(page, name)
    cut = page.locator(".slider_input_container").evaluate_all(
        "all => all.filter(each => each.checkVisibility()).map(each => each.scrollWidth - each.clientWidth)"
    )
    assert cut
    assert max(cut) <= 0


def test_the_page_is_used_by_keyboard(page: Any) -> None:
    page.locator("#prompt textarea").focus()
    seen = []
    for _ in range(4):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen
    assert "Paint" in seen
