"""The tab Understand in a real browser: captions, answers, labels and heat maps, as the package gives them."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')
pytest.importorskip("playwright", reason="needs playwright")

from PIL import Image
from playwright.sync_api import expect
from studio_browser import SECONDS

from codebrush import Codebrush
from codebrush.serving.studio.understand.tab import labels_of

expect.set_options(timeout=1000 * SECONDS)


@pytest.fixture
def apple(tmp_path: Path) -> Path:
    drawn = Image.new("RGB", (128, 128), "white")
    drawn.paste("red", (30, 30, 98, 98))
    drawn.save(tmp_path / "apple.png")
    return tmp_path / "apple.png"


def test_labels_of_one_line_may_have_commas_between_them() -> None:
    assert labels_of(" an apple, a dog ,a car\n\n") == ["an apple", "a dog", "a car"]
    assert labels_of("a dog, asleep\na dog, awake") == ["a dog, asleep", "a dog, awake"]
    assert labels_of(" \n") == []


def test_pictures_are_understood(page: Any, studio: tuple[str, Any], apple: Path) -> None:
    brush: Codebrush = studio[1].brush("emoji", "read")
    page.get_by_role("tab", name="Understand").click()
    tab, found = page.locator("#tab-understand"), page.locator("#found")
    tab.get_by_role("button", name="Look").click()
    expect(found.get_by_role("alert")).to_have_text("choose a picture first")
    page.locator("#understand-picture input[type=file]").set_input_files(apple)
    page.locator("#understand-picture img").wait_for()
    tab.get_by_role("button", name="Look").click()
    expect(found.locator(".cb-lines li")).to_have_count(3)
    (captions,) = brush.caption([apple], n=3)
    assert [captions[0].text in line for line in found.locator(".cb-lines li").all_inner_texts()] == [
        True,
        False,
        False,
    ]
    tab.get_by_label("Ask", exact=True).check()
    page.locator("#question textarea, #question input").fill("what colour is it?")
    page.keyboard.press("Control+Enter")
    expect(found.locator(".cb-answer")).to_have_text(brush.ask(apple, "what colour is it?").text)
    tab.get_by_label("Classify", exact=True).check()
    page.locator("#labels textarea").fill("a dog\na red square")
    tab.get_by_role("button", name="Look").click()
    expect(found.locator(".cb-bars li").first).to_contain_text("a red square")
    tab.get_by_label("Explain", exact=True).check()
    page.locator("#explained textarea, #explained input").fill("a red <b>dog")
    tab.get_by_label("Method").click()
    page.get_by_role("option", name="by gradients").click()
    tab.get_by_role("button", name="Look").click()
    expect(found.locator(".cb-maps img")).to_have_count(3)
    explained = brush.explain(apple, "a red <b>dog", "gradient")
    assert found.locator(".cb-maps strong").all_inner_texts() == [
        "whole text",
        *(word.word for word in explained.words),
    ]
    if explained.doubt is not None:
        assert explained.doubt[1:] in found.locator(".cb-doubt").inner_text()
    assert "Without a map, as they show nothing: a." in found.inner_text()
