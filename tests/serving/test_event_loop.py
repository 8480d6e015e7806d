"""While one caller is answered, the others must not wait: what takes a while is not done in the event loop's thread.

A profile function looks at every call that is made in a thread in which an event loop runs.
"""

import asyncio
import base64
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("multipart", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("httpx", reason="needs the client httpx")

import httpx
from PIL import Image
from server_thread import running

from codebrush import Codebrush
from packs import micro_transformer, write_micro_pack

SLOW_FILES = ("/PIL/", "/sqlalchemy/", "/base64.py", "/shutil.py", "/serving/store.py", "/data/decoding/", "/torch/")
FASTAPI_OWN = "_extract_endpoint_context"  # reads the source of a route when it is first used, for its messages
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
        while frame is not None and frame.f_code.co_name != FASTAPI_OWN:
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
        post("/images/variations", data={"rerank": 1}, files=image)
        post("/replay", files=image)
        link = f"data:image/png;base64,{png}"
        post("/replay", json={"image": link})
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


def test_the_watch_sees_what_is_done_in_an_event_loop(tmp_path: Path) -> None:
    watch = Watch()

    async def slow() -> None:
        Image.new("L", (8, 8)).save(tmp_path / "a.png")

    def run() -> None:
        asyncio.run(slow())

    threading.setprofile(watch)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    threading.setprofile(None)  # type: ignore[arg-type]
    assert {"Image.py: save", "Image.py: save calls open"} <= watch.found
