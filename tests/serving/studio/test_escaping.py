"""What users, models and files wrote is text on the page, never markup: prompts, captions, names, errors, manifests."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

from codebrush.serving.job import Job
from codebrush.serving.studio import queue_tab, views
from codebrush.serving.studio.train import views as training_views
from codebrush.serving.studio.understand import views as understand_views

ATTACK = """<img src=x onerror=alert(1)>'"><script>alert(2)</script>"""
IMAGE = {"verdict": ATTACK, "size": (8, 8), "scorer_score": 0.5}
MANIFEST = {"method": ATTACK, "prompt": ATTACK, "size": [ATTACK], "options": {ATTACK: ATTACK}, "pack": {"name": ATTACK}}


class Page(HTMLParser):
    """Which elements a page has, which of their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.attributes, self.values = set[str](), set[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.values.append(data)


def job(kind: str, **changes: Any) -> Job:
    request = {"prompt": ATTACK, "name": ATTACK}
    return Job(kind=kind, pack="emoji", owner="me", request=request, folder=Path("/nowhere"), **changes)


def reading(kind: str, data: Any) -> Job:
    return job(kind, state="done", result={"data": [data]}, warnings=[ATTACK])


PARTS: dict[str, Callable[[], str]] = {
    "a failure": lambda: views.failure(ATTACK),
    "warnings": lambda: views.warnings([ATTACK]),
    "a gallery": lambda: views.gallery(job("generate", state="done", result={"images": [IMAGE]})),
    "a picture": lambda: views.about(job("generate", state="done", result={"images": [IMAGE]}), 0, MANIFEST),
    "a queued job": lambda: queue_tab._line(job("generate")),
    "a failed job": lambda: queue_tab._line(job("generate", state="failed", error={"message": ATTACK})),
    "captions": lambda: understand_views.found(reading("caption", [{"text": ATTACK, "score": 0.1}])),
    "an answer": lambda: understand_views.found(
        reading("ask", {"answer": ATTACK, "guess": f"{ATTACK}!", "confidence": 0.5})
    ),
    "labels": lambda: understand_views.found(reading("classify", [{"label": ATTACK, "probability": 0.5}])),
    "a training": lambda: training_views.progress(job("train", state="running", step=1, of=2)),
    "a finished training": lambda: training_views.finished(job("train", state="done", result={"verdict": [ATTACK]})),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_others_wrote_is_text(part: str) -> None:
    page = Page()
    page.feed(PARTS[part]())
    assert "script" not in page.elements
    assert [name for name in page.attributes if name.startswith("on")] == []
    assert any(ATTACK in value for value in page.values)


def test_markup_that_is_not_escaped_would_be_found() -> None:
    page = Page()
    page.feed(f"<p>{ATTACK}</p>")
    assert "script" in page.elements
    assert "onerror" in page.attributes
