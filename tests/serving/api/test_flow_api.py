"""A flow that CLIP guides, over HTTP: the pictures of the command line with the same options, and what is refused."""

import base64
import io
import json
from collections.abc import Iterator
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
from codebrush.data.decoding.images import read_manifest
from packs import micro_flow, write_micro_pack

ASKED = {"prompt": "a red circle", "seed": 3, "rerank": 1, "steps": 2, "method": "flow"}
LED = {"clip_guidance": 0.5, "cutouts": 2, "include": ["a square:0.5"]}


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    flow = micro_flow(image_embedding=24, source=True)
    return Codebrush.from_pretrained(write_micro_pack(tmp_path_factory.mktemp("flow") / "micro", flow=flow))


@pytest.fixture(scope="module")
def client(brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(brush, tmp_path_factory.mktemp("served")) as (url, _), httpx.Client(base_url=f"{url}/v1") as found:
        found.timeout = 60
        yield found


def content(reply: Any) -> bytes:
    assert reply.status_code == 200, reply.text
    return base64.b64decode(reply.json()["data"][0]["b64_json"])


def test_clip_guides_a_flow_as_on_the_command_line(client: Any, brush: Codebrush) -> None:
    led = content(client.post("/images/generations", json=ASKED | LED))
    (expected,) = brush.generate(n=1, **ASKED, **LED)
    assert Image.open(io.BytesIO(led)).tobytes() == expected.image.tobytes()
    assert read_manifest(io.BytesIO(led)) == json.loads(json.dumps(expected.manifest))
    assert content(client.post("/images/generations", json=ASKED)) != led


def test_clip_guides_an_edit_by_a_flow(client: Any, brush: Codebrush) -> None:
    file, picture = io.BytesIO(), Image.new("RGB", (32, 32), "orange")
    picture.save(file, "PNG")
    form = {name: str(value) for name, value in ASKED.items()} | {"clip_guidance": "0.5", "sampler": "heun"}
    form["cfg_interval"] = "0.2,0.8"
    led = content(client.post("/images/edits", data=form, files={"image": ("a.png", file.getvalue())}))
    options = {"clip_guidance": 0.5, "sampler": "heun", "cfg_interval": (0.2, 0.8)}
    (expected,) = brush.edit(picture, n=1, **ASKED, **options)
    assert Image.open(io.BytesIO(led)).tobytes() == expected.image.tobytes()
    refused = client.post(
        "/images/edits", data=form | {"cfg_interval": "0.2"}, files={"image": ("a.png", file.getvalue())}
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cfg_interval")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutouts": 2}, "'cutouts' is an option of guidance: add method guide, or clip_guidance with the method flow"),
        ({**LED, "learning_rate": 0.1}, "'learning_rate' is an option of guidance: add method guide"),
        ({"clip_guidance": 0.5, "method": "sample"}, "clip_guidance is an option of the flow: add method flow"),
        ({"clip_guidance": 0.5, "method": "guide"}, "clip_guidance is an option of the flow: add method flow"),
        ({"clip_guidance": 101}, "Invalid value for 'clip_guidance': Input should be less than or equal to 100"),
    ],
)
def test_what_does_not_go_together_is_named(client: Any, changes: dict[str, Any], message: str) -> None:
    reply = client.post("/images/generations", json={**ASKED, **changes})
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, message)
