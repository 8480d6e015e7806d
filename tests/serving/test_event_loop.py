"""While one caller is answered, the others must not wait: what takes a while is not done in the event loop's thread.

A profile function looks at every call that is made in a thread in which an event loop runs.
"""

import asyncio
import base64
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("multipart", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("httpx", reason="needs the client httpx")

import anyio.to_thread
import httpx
from PIL import Image
from server_thread import running
from starlette.requests import Request

from codebrush import Codebrush
from codebrush.serving.api.context import Context
from codebrush.serving.app import make_app
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.settings import Settings
from packs import micro_transformer, write_micro_pack

SLOW_FILES = ("/PIL/", "/sqlalchemy/", "/base64.py", "/shutil.py", "/jobs/store.py", "/data/decoding/", "/torch/")
FASTAPI_OWN = "_extract_endpoint_context"  # reads the source of a route when it is first used, for its messages
GRADIO_OWN = "/gradio/"  # names its components at random
SLOW_CALLS = {open, io.open, os.open, os.stat, os.listdir, os.scandir, os.mkdir, os.unlink, os.replace}


class Watch:
    """Notes what is called in the thread of an event loop, by name."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.seen_loop = False

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if asyncio._get_running_loop() is None:
            if self.seen_loop:  # a thread of work, which takes as long as it takes
                sys.setprofile(None)
            return
        self.seen_loop = True
        file, found = frame.f_code.co_filename, f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"
        if event == "c_call" and argument in SLOW_CALLS and "/asyncio/" not in file:
            found += f" calls {argument.__name__}"
        elif event != "call" or not any(part in file for part in SLOW_FILES):
            return
        while frame is not None and frame.f_code.co_name != FASTAPI_OWN and GRADIO_OWN not in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None:
            self.found.add(found)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[str, Any, Watch]]:
    """The URL of a server whose calls are watched, and its engine."""
    painter = micro_transformer(image_embedding=24, source_codes=True)
    pack = write_micro_pack(tmp_path / "micro", transformer=painter)
    library = tmp_path / "library"
    library.mkdir()
    watch = Watch()
    threading.setprofile(watch)
    try:
        with running(Codebrush.from_pretrained(pack), tmp_path / "data", libraries=(library,)) as (url, engine):
            threading.setprofile(None)  # type: ignore[arg-type]
            engine.brush("micro")
            yield url, engine, watch
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
        sys.setprofile(None)


def test_nothing_slow_is_done_in_the_event_loop(watched: tuple[str, Any, Watch], tmp_path: Path) -> None:
    url, _, watch = watched
    asked = {"prompt": "a red circle", "seed": 1, "quality": "low"}
    with httpx.Client(base_url=f"{url}/v1", timeout=60) as client:

        def post(path: str, status: int = 200, **given: Any) -> Any:
            watch.found.clear()
            reply = client.post(path, **given)
            assert reply.status_code == status, reply.text
            assert not watch.found, f"{path}: {sorted(watch.found)}"
            return reply

        png = post("/images/generations", json=asked).json()["data"][0]["b64_json"]
        post("/images/generations", json={**asked, "output_format": "webp", "response_format": "url"})
        post("/images/generations", json={**asked, "stream": True, "partial_images": 2, "output_format": "jpeg"})
        job = post("/images/generations", 202, json={**asked, "wait": False}).json()["id"]
        image = {"image": ("a.png", base64.b64decode(png), "image/png")}
        post("/images/edits", data={"prompt": "a dog", "rerank": 1}, files=image)
        post("/replay", files=image)
        link = f"data:image/png;base64,{png}"
        post("/embeddings", json={"input": ["a red circle", link]})
        post("/classify", json={"image": link, "labels": ["a dog", "a circle"]})
        post("/explain", files=image, data={"text": "a circle"})
        post("/train", 400, json={"source": "library", "name": "mine", "budget": "60"})
        watch.found.clear()
        assert client.get(f"/jobs/{job}/events").text.startswith("event: job")
        assert client.get("/models").status_code == 200
        client.delete(f"/jobs/{job}")
        assert client.get("/jobs/none/events").status_code == 404
        assert not watch.found, sorted(watch.found)


def by_element(page: Any) -> dict[str, Any]:
    """The components of a page by their ids in the browser."""
    return {each.elem_id: each for each in page.blocks.values() if getattr(each, "elem_id", None)}


@pytest.fixture(scope="module")
def studio_page(
    served_brush: Codebrush, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Context, Any, Path]]:
    """A server that works, its page, and a library with one picture."""
    pytest.importorskip("gradio", reason='needs the extra "studio"')
    from codebrush.serving.studio.page import build

    library, data = tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("data")
    Image.new("RGB", (32, 32), "red").save(library / "a.png")
    engine = Engine({"micro": lambda: served_brush}, Store(data), library=Library((library,), data))
    engine.start()
    context = Context(engine, Settings(packs=("micro",), data=data, libraries=(library,)))
    yield context, build(context), library
    engine.stop(0)


@pytest.mark.parametrize(
    ("button", "typed", "kind"),
    [
        ("paint-go", {"prompt": "a red circle"}, "generate"),
        ("understand-go", {"understand-picture": "a.png", "labels": "a dog\na circle"}, "classify"),
        ("index-go", {}, "index"),
        ("search-go", {"search-words": "a red circle"}, "search"),
        ("train-check", {}, "check"),
        ("train-go", {"train-name": "mine"}, "check"),
    ],
)
def test_the_page_does_nothing_slow_in_the_event_loop(
    studio_page: tuple[Context, Any, Path], monkeypatch: pytest.MonkeyPatch,
    button: str, typed: dict[str, str], kind: str,
) -> None:  # fmt: skip
    context, page, library = studio_page
    found, kinds = by_element(page), []
    given = {found[name]: str(library / text) if text == "a.png" else text for name, text in typed.items()}
    (event,) = [each for each in page.fns.values() if (found[button]._id, "click") in each.targets]
    values = {each: given.get(each, each.value) for each in event.inputs}
    request = Request({"type": "http", "headers": [], "state": {"owner": "ann"}})
    watch, submit = Watch(), context.engine.submit

    async def click() -> None:
        async for _ in event.fn(*([values] if event.inputs_as_dict else values.values()), request):
            pass

    def noted(kind: str, *more: Any) -> Any:
        kinds.append(kind)
        return submit(kind, *more)

    monkeypatch.setattr(context.engine, "submit", noted)
    watched_thread(lambda: asyncio.run(click()), watch)
    assert kinds == [kind]
    assert not watch.found, sorted(watch.found)


def test_health_is_told_while_all_threads_are_busy(served_brush: Codebrush, tmp_path: Path) -> None:
    engine = Engine({"micro": lambda: served_brush}, Store(tmp_path))
    app = make_app(engine, Settings(packs=("micro",), data=tmp_path))

    async def health() -> httpx.Response:
        threads = anyio.to_thread.current_default_thread_limiter()
        for _ in range(int(threads.total_tokens)):
            await threads.acquire_on_behalf_of(object())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await asyncio.wait_for(client.get("/health"), 30)  # else it would wait for ever

    assert asyncio.run(health()).json()["status"] == "ok"
    engine.stop(0)


def watched_thread(run: Callable[[], None], watch: Watch) -> None:
    """Let something run in a new thread whose calls are watched."""
    threading.setprofile(watch)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


def test_the_watch_sees_what_is_done_in_an_event_loop(tmp_path: Path) -> None:
    watch = Watch()

    async def slow() -> None:
        Image.new("L", (8, 8)).save(tmp_path / "a.png")

    watched_thread(lambda: asyncio.run(slow()), watch)
    assert {"Image.py: save", "Image.py: save calls open"} <= watch.found
