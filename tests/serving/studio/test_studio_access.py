"""Who sees the page, and what a request to it cannot do; without a browser."""

import asyncio
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

import gradio as gr
from gradio.exceptions import InvalidPathError
from gradio.route_utils import delete_files_created_by_app
from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from server_thread import running
from studio_browser import png

from codebrush import Codebrush
from codebrush.serving.sign_in import SECONDS, cookie_for, key_of_cookie
from codebrush.serving.studio.gate import Gate
from codebrush.serving.studio.page import TOUCH_SECONDS, UPLOAD_SECONDS, touch
from codebrush.serving.studio.parts import cached

KEYS = ("first-key", "second-key")
FILE = {"path": "a file", "meta": {"_type": "gradio.FileData"}}  # as Gradio knows one


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_Stay)


def call(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of a reply; redirects are not followed."""
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    try:
        with OPENER.open(urllib.request.Request(url, body, given), timeout=60) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def join(url: str, data: list[Any], index: int, **headers: str) -> str:
    """Call an event of the page; the text of the server-sent events about it."""
    asked = {"data": data, "fn_index": index, "session_hash": "test", "event_data": None, "trigger_id": None}
    status, text, _ = call(f"{url}/gradio_api/queue/join", json.dumps(asked).encode(), content_type="application/json")
    return text if status != 200 else call(f"{url}/gradio_api/queue/data?session_hash=test", **headers)[1]


@pytest.fixture(scope="module")
def paged(served_brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with running(served_brush, tmp_path_factory.mktemp("paged"), page=True) as found:
        yield found


@pytest.fixture(scope="module")
def locked(served_brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(served_brush, tmp_path_factory.mktemp("locked"), page=True, keys=KEYS) as (url, _):
        yield url


def test_without_the_page_one_line_says_how_to_get_it(server: tuple[str, Any]) -> None:
    status, text, _ = call(server[0])
    assert (status, text.count("\n")) == (200, 1)
    assert "pip install 'codebrush[studio]'" in text
    assert call(f"{server[0]}/login")[0] == 404


def test_the_page_asks_for_a_key(locked: str, caplog: pytest.LogCaptureFixture) -> None:
    status, _, headers = call(locked)
    assert (status, headers["location"]) == (303, "/login")
    for path in ("config", "assets/x.js", "gradio_api/info", "gradio_api/heartbeat/a"):
        assert call(f"{locked}/{path}")[0] == 401
    assert call(f"{locked}/gradio_api/queue/join", b"{}")[0] == 401
    assert "password" in call(f"{locked}/login")[1]
    for long in (b"key=first-key&" + b"a" * 5000, b"a=b&" * 900 + b"key=first-key"):
        assert call(f"{locked}/login", long)[0] == 401
    status, text, headers = call(f"{locked}/login", b"key=first-ke")
    assert (status, headers["set-cookie"]) == (401, None)
    assert "This is not the key." in text
    status, _, headers = call(f"{locked}/login", b"key=first-key", origin=locked)
    assert (status, headers["location"]) == (303, "/")
    given = headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(given.split("; "))
    cookie = given.split(";")[0]
    assert "first-key" not in urllib.parse.unquote(given)
    assert call(locked, cookie=cookie)[0] == 200
    assert call(locked, authorization="Bearer second-key")[0] == 200
    assert call(f"{locked}/v1/models", cookie=cookie)[0] == 401  # the API asks for the key itself
    for wrong in ("codebrush=", f"{cookie}0", cookie.replace("=", "=9"), "codebrush=9999999999."):
        assert call(locked, cookie=wrong)[0] == 303
    assert call(f"{locked}/login", b"key=first-key", origin="https://evil.example")[0] == 403
    assert "Max-Age=0" in call(f"{locked}/logout", b"", cookie=cookie)[2]["set-cookie"]
    assert '"route": "/login"' in caplog.text
    assert "first-key" not in caplog.text


def test_a_cookie_ends_and_is_worth_nothing_with_other_keys() -> None:
    now = time.time()
    cookie = cookie_for("first-key", now)
    assert key_of_cookie(cookie, KEYS, now) == "first-key"
    assert key_of_cookie(cookie, KEYS, now + SECONDS + 1) is None
    assert key_of_cookie(cookie, ("second-key",), now) is None
    assert key_of_cookie(cookie_for("second-key", now), KEYS, now) == "second-key"
    assert key_of_cookie(f"{2 * int(cookie.split('.')[0])}.{cookie.split('.')[1]}", KEYS, now) is None


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd", "gradio_api/file=../../../etc/passwd", "gradio_api/file=http://192.0.2.1/x",
        "gradio_api/file=https:192.0.2.1", "gradio_api/proxy=http://192.0.2.1/x", "gradio_api/deep_link", "monitoring",
        "gradio_api/openapi.json", "gradio_api/runs", "gradio_api/token", "static/../../../../etc/passwd",
        "assets/%2e%2e/%2e%2e/%2e%2e/routes.py", "svelte/..%2f..%2froutes.py", "docs", "custom_component/a/client/b/c",
    ],
)  # fmt: skip
def test_no_path_reaches_a_file_or_another_host(paged: tuple[str, Any], path: str) -> None:
    status, text, _ = call(f"{paged[0]}/{path}")
    assert status in (403, 404, 405), path
    assert "root:" not in text
    assert "def " not in text


def test_what_is_not_of_the_page_is_answered_by_the_api(paged: tuple[str, Any]) -> None:
    url = paged[0]
    assert call(f"{url}/v1/embeddings")[0] == 405
    status, text, _ = call(f"{url}/v1/nothing")
    assert (status, json.loads(text)["error"]["type"]) == (404, "invalid_request_error")
    for path in ("gradio_api/run/predict", "gradio_api/call/x", "gradio_api/vibe-edit", "gradio_api/process_recording"):
        assert call(f"{url}/{path}", b"{}", content_type="application/json")[0] in (404, 405)
    assert "default-src 'self'" in call(url)[2]["content-security-policy"]


def opening(url: str) -> tuple[int, list[None]]:
    """The event that opens a picture, by its number, and what it takes beside that."""
    config = json.loads(call(f"{url}/config")[1])
    button = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "open-picture")
    index = next(each["id"] for each in config["dependencies"] if [button, "upload"] in each["targets"])
    return index, [None] * (len(config["dependencies"][index]["inputs"]) - 1)


def test_an_event_opens_no_file_but_an_upload(paged: tuple[str, Any], tmp_path: Path) -> None:
    url = paged[0]
    index, states = opening(url)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")  # on this machine, but not uploaded
    secret = str(tmp_path / "secret.png")
    uploads = get_upload_folder()
    around = f"{uploads}/../{os.path.relpath(secret, Path(uploads).parent)}"
    for path in ("http://192.0.2.1/a.png", "https:evil", "file:///etc/passwd", secret, around, os.path.relpath(secret)):
        about = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert "not a request of the page" in join(url, [about, *states], index)
        assert "not a request of the page" in join(url, [{"one": [about]}, *states], index)
    for address in ({"url": "data:image/png;base64,AAAA"}, {"path": cached(b""), "url": " DATA:image/png;base64,AAAA"}):
        assert "not a request of the page" in join(
            url, [{**address, "meta": {"_type": "gradio.FileData"}}, *states], index
        )
    sent = {"path": cached(png(Image.new("RGB", (8, 8), "red"))), "meta": {"_type": "gradio.FileData"}}
    assert "does not say how it was made" in join(url, [sent, *states], index)


def test_gradio_too_refuses_files_that_were_not_uploaded(
    paged: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.serving.studio.gate.names_other_file", lambda value: False)
    index, states = opening(paged[0])
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    about = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    told = join(paged[0], [about, *states], index)
    assert '"success":false' in told.replace(" ", "")
    assert "does not say how it was made" not in told


@pytest.mark.parametrize("secret", ["pyproject.toml", "http://192.0.2.1/a.png", "/etc/hostname"])
@pytest.mark.parametrize(
    "manifest",
    [
        {"method": "upscale", "upscaled": [{"scale": FILE}]},
        {"method": "guide", "pack": {}, "prompt": "a", "options": {}, "n": FILE, "seed": 1, "sampling": {}},
        {"method": "guide", "pack": {}, "prompt": "a", "options": {}, "n": [FILE], "seed": 1, "sampling": {}},
    ],
    ids=["scale", "n", "a list"],
)
def test_a_manifest_names_no_file_that_is_sent(paged: tuple[str, Any], manifest: dict[str, Any], secret: str) -> None:
    info = PngInfo()
    path = secret if ":" in secret else str(Path(secret).absolute())
    info.add_text("codebrush", json.dumps(manifest).replace(json.dumps(FILE["path"]), json.dumps(path)))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    index, states = opening(paged[0])
    sent = {"path": cached(file.getvalue()), "meta": {"_type": "gradio.FileData"}}
    told = join(paged[0], [sent, *states], index)
    assert "damaged" in told
    assert "file=" not in told
    assert '"path"' not in told


def test_gradio_moves_and_serves_uploads_alone(paged: tuple[str, Any], tmp_path: Path) -> None:
    upload, other = cached(png(Image.new("RGB", (8, 8), "red"))), tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(other)
    link = Path(upload).with_name("link.png")
    link.symlink_to(other)
    with gr.Blocks(analytics_enabled=False):
        image = gr.Image()
    for path in (other, link, Path("pyproject.toml"), "http://192.0.2.1/a.png"):
        with pytest.raises(InvalidPathError, match="not uploaded"):
            image.move_resource_to_block_cache(path)
        with pytest.raises(InvalidPathError, match="not uploaded"):
            asyncio.run(image.async_move_resource_to_block_cache(path))
    assert image.move_resource_to_block_cache(upload) == upload
    statuses = [call(f"{paged[0]}/gradio_api/file={path}")[0] for path in (other, link, f"{Path(upload).parent}/..")]
    assert statuses == [403] * 3
    with OPENER.open(f"{paged[0]}/gradio_api/file={upload}") as reply:
        assert reply.read() == Path(upload).read_bytes()


def test_uploads_stay_while_they_stand_in_a_form(paged: tuple[str, Any], tmp_path: Path) -> None:
    config = json.loads(call(f"{paged[0]}/config")[1])
    (timer,) = [each for each in config["components"] if each["props"].get("value") == TOUCH_SECONDS]
    (tick,) = [each for each in config["dependencies"] if [timer["id"], "tick"] in each["targets"]]
    pictures = {each["id"] for each in config["components"] if each["type"] == "image"}
    assert pictures <= set(tick["inputs"])
    assert len(pictures) >= 5
    assert 2 * TOUCH_SECONDS < UPLOAD_SECONDS
    kept, left = tmp_path / "kept.png", tmp_path / "left.png"
    blocks = gr.Blocks(analytics_enabled=False)
    blocks.temp_file_sets.append({str(kept), str(left)})
    for file in (kept, left):
        file.write_bytes(b"a picture")
    time.sleep(1.2)
    touch(str(kept), None, str(tmp_path / "gone.png"))
    delete_files_created_by_app(blocks, age=1)
    assert (kept.exists(), left.exists()) == (True, False)


def test_an_open_page_does_not_keep_the_server_from_stopping(served_brush: Codebrush, tmp_path: Path) -> None:
    with running(served_brush, tmp_path, page=True) as (url, engine):
        alive = urllib.request.urlopen(f"{url}/gradio_api/heartbeat/test", timeout=60)
        assert alive.readline() == b"data: ALIVE\n"
        engine.begin_stop()
        alive.read()  # to its end


def test_no_event_that_a_page_holds_open_keeps_the_server_from_stopping() -> None:
    stops, said = [False], list[str]()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            while not stops[0]:
                await asyncio.sleep(0.01)
            said.append("the server stops")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            said.append(scope["path"])
            raise

    async def asked(path: str) -> None:
        gate = Gate(endless, lambda: stops[0], 0.5)
        task = asyncio.ensure_future(gate({"type": "http", "path": path, "headers": []}, None, None))  # pyright: ignore[reportArgumentType]
        await asyncio.sleep(0.05)
        assert not task.done()
        stops[0] = True
        await asyncio.wait_for(task, 30)

    asyncio.run(asked("/gradio_api/queue/data"))
    assert said == ["the server stops", "/gradio_api/queue/data"]
