"""Each control of each tab has a name for screen readers and is reached by keyboard; deletions are asked about; what is
pasted goes where it is meant."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')
pytest.importorskip("lancedb", reason='needs the extra "search"')

from PIL import Image
from server_thread import running
from studio_browser import drop, png

from codebrush import Codebrush
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.training.packs.request import make_request, write_request

# For each control that is seen: how it is wrong, with its HTML.
WRONG = """() => [...document.querySelectorAll(
    "button, input, textarea, select, a[href], [tabindex], [role=button], [role=slider]")].filter(
    (each) => each.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && !each.disabled
      && each.getBoundingClientRect().width > 1 && each.getAttribute("tabindex") !== "-1"
      || (each.tagName === "BUTTON" && each.checkVisibility() && each.getBoundingClientRect().width > 1)).flatMap(
    (each) => {
      const images = [...each.querySelectorAll("img[alt], svg title")].map((one) => one.alt || one.textContent);
      const by = (each.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id));
      const name = [each.ariaLabel, each.title, each.innerText, ...images, ...by.map((one) => one?.innerText),
        ...[...each.labels ?? []].map((one) => one.innerText)].some((text) => text?.trim());
      const radio = each.type === "radio" || each.getAttribute("role") === "tab";
      const reached = each.disabled || radio || each.tabIndex >= 0;
      return [...(name ? [] : ["without a name"]), ...(reached ? [] : ["not reached by keyboard"])].map(
        (wrong) => `${wrong}: ${each.outerHTML.slice(0, 300)}`);
    })"""
KINDS_OF_WRONG = ("without a name", "not reached by keyboard")
TABS = {
    "paint": "Paint",
    "edit": "Edit",
    "understand": "Understand",
    "search": "Search",
    "train": "Train",
    "queue": "Queue",
}
PASTE = """([target, encoded, text]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([bytes], "image.png", { type: "image/png" }));
  if (text) clipboardData.setData("text/plain", text);
  const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData });
  return document.querySelector(target).dispatchEvent(event);
}"""
DOT_AT_ONCE = """async () => {
  const canvas = () => document.querySelector(".cb-canvas canvas");
  while (!(canvas()?.width > 300)) await new Promise(requestAnimationFrame);
  canvas().dispatchEvent(new KeyboardEvent("keydown", { key: " " }));
}"""  # in the middle of the mask, as soon as its picture is there
MASK = """() => {
  const canvas = document.querySelector(".cb-canvas canvas");
  if (!(canvas?.width > 300)) return "not there";
  const seen = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value);
  const said = document.querySelector("#mask-data textarea").value !== "";
  return seen === said ? (seen ? "painted" : "empty") : "two things";
}"""  # what is seen on the canvas and what is sent of it


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "drawings"
    write_shapes(folder, 6, size=32, objects=1)
    return folder


@pytest.fixture(scope="module")
def stocked(micro_pack: Path, drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """A server with a library, a pack that was trained there, and a training that was stopped: its URL and engine."""
    data = tmp_path_factory.mktemp("stocked")
    shutil.copytree(micro_pack, data / "packs" / "mine")
    write_request(make_request(str(drawings), data / "packs" / "half", {"budget": 600.0}))
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    with running(brush, data, page=True, libraries=(drawings,)) as found:
        yield found


@pytest.fixture
def stocked_page(stocked: tuple[str, Any], visit: Callable[..., Any]) -> Any:
    return visit(stocked[0])


def unfolded(page: Any, tab: str) -> None:
    """Open all of a tab that can be opened."""
    closed = f"#tab-{tab} button.label-wrap:not(.open)"
    for _ in range(20):
        found = page.locator(closed).locator("visible=true")
        if not found.count():
            return
        found.first.click()


def test_each_control_has_a_name_and_is_reached_by_keyboard(stocked_page: Any) -> None:
    page = stocked_page
    wrong = list[str]()
    for tab, title in TABS.items():
        page.get_by_role("tab", name=title).click()
        page.locator(f"#tab-{tab}").locator("button, .cb-note").locator("visible=true").first.wait_for()
        if tab == "edit":
            page.locator("#edit-source input[type=file]").set_input_files(
                {"name": "a.png", "mimeType": "image/png", "buffer": png(Image.new("RGB", (32, 32), "red"))}
            )
            page.locator(".cb-canvas canvas").wait_for()
        unfolded(page, tab)
        wrong += [f"{tab}: {line}" for line in page.evaluate(WRONG)]
        page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<button id=bad tabindex=-1 style=width:9px></button>')"
        )
        noticed = {line.split(":")[0] for line in page.evaluate(WRONG)}
        wrong += [f"{tab}: not noticed: {kind}" for kind in KINDS_OF_WRONG if kind not in noticed]
        page.evaluate("document.querySelector('#bad').remove()")
        tasks = page.locator(f"#tab-{tab}").get_by_label("What to do").get_by_role("radio").all()
        for number, task in enumerate([*tasks, *tasks[:1]]):  # and back to the first
            task.check()
            page.wait_for_timeout(300)
            unfolded(page, tab)
            place = f"{tab}, choice {number % len(tasks) + 1} of what to do"
            wrong += [f"{place}: {line}" for line in page.evaluate(WRONG)]
            masks = page.get_by_text(re.compile("(Painted|Saved) mask")).locator("visible=true").count()
            wrong += [f"{place}: a mask is shown"] * bool(masks)
    assert wrong == []


def test_a_painted_mask_is_saved_and_gone_when_the_same_picture_comes_again(stocked_page: Any) -> None:
    page, content = stocked_page, png(Image.new("RGB", (64, 48), "orange"))
    drop(page, content)
    page.get_by_text("does not say how it was made").wait_for()
    page.locator(".cb-actions button", has_text="Edit").locator("visible=true").first.click()
    page.evaluate(DOT_AT_ONCE)
    painted = "document.querySelector('#mask-data textarea')?.value.length > 100"
    page.wait_for_function(painted)
    page.wait_for_timeout(1500)  # in which the server answers that the picture is shown, too
    assert page.evaluate(painted)
    with page.expect_download() as found:
        page.get_by_role("button", name="Save the mask").click()
    mask = Image.open(Path(found.value.path()))
    assert (found.value.suggested_filename, mask.mode, mask.size) == ("mask.png", "L", (64, 48))
    assert (mask.getpixel((32, 24)), mask.getpixel((2, 2))) == (255, 0)
    drop(page, content)
    page.get_by_text("does not say how it was made").wait_for()
    page.locator(".cb-actions button", has_text="Edit").locator("visible=true").first.click()
    page.wait_for_function("document.querySelector('#mask-data textarea')?.value === ''")
    painted = """() => { const canvas = document.querySelector(".cb-canvas canvas");
      return canvas.width < 300 || canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
        .some((value) => value); }"""
    page.wait_for_function(f"!({painted})()")


def test_what_is_painted_is_what_is_seen_whatever_happens_to_its_picture(stocked_page: Any) -> None:
    page, content = stocked_page, png(Image.new("RGB", (64, 48), "orange"))
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-source input[type=file]").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": content}
    )
    tasks = page.locator("#edit-task input[type=radio]")

    def painted() -> None:
        page.evaluate(DOT_AT_ONCE)
        page.wait_for_function(f"({MASK})() === 'painted'")

    def is_empty() -> None:
        page.wait_for_function(f"({MASK})() === 'empty'")

    def other_task(meanwhile: Callable[[], Any]) -> None:
        tasks.nth(2).check()
        page.locator(".cb-canvas").wait_for(state="detached")
        meanwhile()
        tasks.nth(0).check()

    def dropped() -> None:
        with page.expect_response(re.compile("/upload")):
            drop(page, content, "#edit-source img", name="a.png")
        page.wait_for_timeout(1500)  # in which the server answers that the picture has changed

    painted()
    other_task(lambda: None)
    page.wait_for_function(f"({MASK})() === 'painted'")  # a look at another task costs no stroke
    dropped()
    is_empty()
    painted()
    other_task(dropped)
    is_empty()
    painted()
    other_task(lambda: page.locator("#edit-source button[aria-label='Remove Image']").click())
    page.wait_for_function("document.querySelector('#mask-data textarea')?.value === ''")
    assert page.locator(".cb-canvas").is_hidden()


def test_deletions_are_asked_about(stocked_page: Any, stocked: tuple[str, Any]) -> None:
    page, engine = stocked_page, stocked[1]
    asked: list[str] = []
    answers = iter([False, True, True])

    def answer(dialog: Any) -> None:
        asked.append(dialog.message)
        (dialog.accept if next(answers) else dialog.dismiss)()

    page.on("dialog", answer)
    page.get_by_role("tab", name="Train").click()
    pack, half = (page.get_by_role("button", name=f"Delete {name}") for name in ("mine", "half"))
    pack.click()
    page.wait_for_timeout(500)
    assert "mine" in engine.packs
    pack.click()
    pack.wait_for(state="detached")
    assert "mine" not in engine.packs
    half.click()
    half.wait_for(state="detached")
    assert engine.trainer.places.stopped() == []
    assert ["the pack 'mine'" in asked[0], "the pack 'mine'" in asked[1], "training 'half'" in asked[2]] == [True] * 3


def test_a_text_is_pasted_where_a_text_is_typed_and_a_picture_elsewhere(stocked_page: Any) -> None:
    import base64

    page, picture = stocked_page, base64.b64encode(png(Image.new("RGB", (8, 8), "red"))).decode()
    assert page.evaluate(PASTE, ["#prompt textarea", picture, "a red apple"])  # left to the browser
    assert page.locator("#notice p").count() == 0
    assert not page.evaluate(PASTE, ["#prompt textarea", picture, ""])
    page.get_by_text("does not say how it was made").wait_for()
    assert not page.evaluate(PASTE, ["#tab-paint", picture, "a text beside it"])


def test_a_server_that_is_gone_or_another_one_is_said(studio: tuple[str, Any], browser: Any) -> None:
    page = browser.new_page()  # not of `visit`: Gradio logs what a reload breaks off as errors
    page.goto(studio[0])
    line = page.locator("#cb-server")
    looked = "() => dispatchEvent(new Event('focus'))"
    for _ in range(2):  # when it looks again it has read what came before
        with page.expect_response("**/health") as told:
            page.evaluate(looked)
        health = told.value.json()
        page.wait_for_timeout(200)
    assert line.count() == 0
    page.route("**/health", lambda route: route.fulfill(body="what another program says"))
    page.evaluate(looked)
    line.get_by_text("The server does not answer").wait_for()
    page.unroute("**/health")
    page.evaluate(looked)
    line.wait_for(state="detached")
    page.route("**/health", lambda route: route.fulfill(json={**health, "started": health["started"] + 1}))
    page.evaluate(looked)
    line.get_by_role("button", name="Reload").click()
    page.locator("#prompt textarea").wait_for()
    line.wait_for(state="detached")  # the page that was opened now knows that one
    page.close()
