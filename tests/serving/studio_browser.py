"""The browser that the page's tests use, and what they do with it."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SECONDS = 60  # that anything may take; a server on a busy machine is slow
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

_DROP = """([target, name, type, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, {type}));
  const element = document.querySelector(target);
  for (const kind of ["dragenter", "dragover", "drop"])
    element.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer}));
}"""


def browser_path() -> str | None:
    """A browser that is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched(path: str) -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Watch:
    """A window on the page, in a profile of its own. Leaving it fails if it asked another host for anything, or logged
    an error."""

    def __init__(self, browser: Any, url: str, viewport: dict[str, int] | None = None, **options: Any) -> None:
        self.url, self.browser = url, browser
        self.options = {"viewport": viewport or DESKTOP, **options}
        self.foreign: list[str] = []
        self.errors: list[str] = []

    def __enter__(self) -> Any:
        self.context = self.browser.new_context(**self.options)
        self.context.set_default_timeout(SECONDS * 1000)
        self.context.on("request", self._asked)
        page = self.context.new_page()
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.url)
        page.locator("#prompt textarea").wait_for()
        return page

    def _asked(self, request: Any) -> None:
        place = urlsplit(request.url)
        if place.scheme not in ("data", "blob") and place.netloc != urlsplit(self.url).netloc:
            self.foreign.append(request.url)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.context.close()
        if error is None:
            assert (self.foreign, self.errors) == ([], [])


def drop(page: Any, content: bytes, target: str = "body", name: str = "picture.png", type: str = "image/png") -> None:
    """Drop a file on an element, as from the desktop."""
    page.evaluate(_DROP, [target, name, type, base64.b64encode(content).decode()])


def opened(page: Any, name: str) -> None:
    """Open an accordion."""
    page.locator("button.label-wrap", has_text=name).first.click()


def fill(page: Any, **fields: Any) -> None:
    """Write into fields, named by their label in small letters."""
    for name, value in fields.items():
        label = name.replace("_", " ").capitalize()
        named = "number input for Pictures" if label == "Pictures" else label
        page.get_by_label(re.compile(rf"^\s*{named}\b")).first.fill(str(value))


def choose(page: Any, label: str, entry: str) -> None:
    """Choose the first entry of a list that begins so."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=entry).first.click()


def expect_value(field: Any, beginning: str) -> None:
    """Wait until a field's value begins so."""
    from playwright.sync_api import expect

    expect(field).to_have_value(re.compile(rf"^{re.escape(beginning)}"), timeout=SECONDS * 1000)


def paint(page: Any, prompt: str) -> None:
    """Type a prompt, and press Ctrl+Enter."""
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#prompt textarea").press("Control+Enter")


def png(picture: Image.Image) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def downloaded(page: Any) -> bytes:
    """The file behind the link of the picture that is chosen."""
    with page.expect_download() as found:
        page.get_by_role("link", name="Download PNG").click()
    return Path(found.value.path()).read_bytes()
