"""The tabs Search and Train in a real browser on a folder of twenty drawings."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')
pytest.importorskip("lancedb", reason='needs the extra "search"')

from api_calls import call
from server_thread import running

from codebrush import Codebrush
from codebrush.data.synthetic.scene_folder import write_shapes

COUNT = 20


@pytest.fixture(scope="module")
def brush() -> Codebrush:
    return Codebrush.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "drawings"
    write_shapes(folder, COUNT, size=64, objects=1)
    return folder


@pytest.fixture(scope="module")
def shelf(brush: Codebrush, drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the drawings as its library."""
    data = tmp_path_factory.mktemp("shelf")
    with running(brush, data, "emoji", page=True, libraries=(drawings,)) as (url, _):
        yield url


def results(page: Any) -> list[str]:
    """The places of the pictures that were found."""
    return [button.get_attribute("title") for button in page.locator("#search-results .cb-picture").all()]


def search(page: Any, words: str | None = None) -> list[str]:
    """Search with Ctrl+Enter; the places of what is found."""
    if words is not None:
        page.locator("#search-words textarea").fill(words)
    page.locator("#search-status").evaluate("element => { element.querySelector('[role=status]')?.remove() }")
    page.locator("#search-words textarea").press("Control+Enter")
    page.locator("#search-status [role=status]").get_by_text("best first").wait_for()
    return results(page)


def test_a_folder_is_indexed_and_searched_by_words_pictures_and_both(
    shelf: str, visit: Callable[..., Any], drawings: Path
) -> None:
    page = visit(shelf)
    page.get_by_role("tab", name="Search").click()
    page.locator("#search-words textarea").fill("a red circle")
    page.locator("#search-words textarea").press("Control+Enter")
    page.get_by_text("not indexed yet: press").wait_for()
    page.locator("#index-go").click()
    page.get_by_text(f"{COUNT} pictures indexed").wait_for()

    found = search(page, "a red circle")
    said = call(f"{shelf}/v1/search", {"folder": "drawings", "text": "a red circle", "n": 12})[1]
    assert found == [each["picture"] for each in said["data"]]
    assert len(found) == 12

    files = sorted((drawings / "images").iterdir())
    page.locator("#search-picture input[type=file]").set_input_files(files[3])
    page.locator("#search-picture img").wait_for()
    both = search(page)
    alone = search(page, "")
    assert alone[0] == f"drawings/images/{files[3].name}"
    assert both != alone
    page.locator("#search-results .cb-picture").first.click()
    page.locator(".cb-large img").wait_for()
    page.get_by_role("button", name="More like this").click()
    page.wait_for_function(
        "first => document.querySelector('#search-results .cb-picture')?.title !== first", arg=alone[0]
    )
    assert alone[0] not in results(page)
    page.locator("#search-results .cb-picture").first.click()
    page.locator(".cb-large img").wait_for()
    page.get_by_role("button", name="Use as start").locator("visible=true").click()
    page.locator("#prompt textarea").wait_for()


def test_without_a_library_the_tabs_say_how_to_get_one(page: Any) -> None:
    for tab in ("Search", "Train"):
        page.get_by_role("tab", name=tab).click()
        page.locator("code", has_text="codebrush serve --library FOLDER").locator("visible=true").wait_for()


def test_pictures_are_checked_before_a_training_and_what_is_wrong_is_said(
    shelf: str, visit: Callable[..., Any], drawings: Path
) -> None:
    page = visit(shelf)
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-check").click()
    page.get_by_text(f"{COUNT} captioned pictures, such as").wait_for()
    page.locator("#train-go").click()
    page.get_by_text("give the new pack a name").wait_for()
    page.locator("#train-name textarea, #train-name input").fill("My pack")
    page.locator("#train-go").click()
    page.get_by_text("small letters, digits, - and _ alone").wait_for()
    page.locator("#train-name textarea, #train-name input").fill("mine")
    page.locator("#train-captions textarea").fill("a {breed}")
    page.locator("#train-go").click()
    page.get_by_text("needs the column breed").wait_for()
    page.locator("#train-captions textarea").fill("")
    page.locator("#train-budget input").fill("9h")
    page.locator("#train-budget input").press("Tab")
    page.locator("#train-go").click()
    page.get_by_text("8h at most here").wait_for()


@pytest.fixture
def trainer(served_brush: Codebrush, drawings: Path, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """A server of the micro pack with the drawings as its library: its URL and engine."""
    with running(served_brush, tmp_path / "data", page=True, libraries=(drawings,)) as found:
        yield found


@pytest.mark.long
def test_a_minute_of_training_gives_a_pack_that_every_tab_has(
    trainer: tuple[str, Any], visit: Callable[..., Any]
) -> None:
    url, engine = trainer
    page = visit(url)
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-name textarea, #train-name input").fill("mine")
    page.locator("#train-budget input").fill("150s")
    page.locator("#train-budget input").press("Tab")
    page.locator("#train-go").click()
    page.get_by_text(re.compile(r"^mine: \d+ s of 2 min")).wait_for()
    page.locator("#train-report svg").first.wait_for()
    page.locator("#train-stop").click()
    page.get_by_text("Stopped. It is saved").wait_for()
    page.get_by_role("button", name="Resume mine").click()
    page.get_by_text("is now in the list of packs").wait_for(timeout=400_000)
    assert page.locator("#train-report .cb-sheets img").first.evaluate("image => image.naturalWidth") > 0
    page.locator("#train-paint").click()
    page.locator("#prompt textarea").fill("a red circle")
    page.locator("#prompt textarea").press("Control+Enter")
    page.locator(".cb-picture").first.wait_for()
    jobs = engine.jobs_of("address 127.0.0.1", 1)
    assert (jobs[0].kind, jobs[0].pack) == ("generate", "mine")
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Pack").locator("visible=true").wait_for()
