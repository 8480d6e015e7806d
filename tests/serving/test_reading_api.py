"""Labels, captions and answers over HTTP are those of the package."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')

from PIL import Image
from server_thread import running

from codebrush import Codebrush
from packs import micro_captioner, micro_tokenizer, write_micro_pack

PICTURES = [Image.new("RGB", (32, 32), colour) for colour in ("orange", "navy")]


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    folder = tmp_path_factory.mktemp("reading") / "micro"
    return Codebrush.from_pretrained(write_micro_pack(folder, captioner=micro_captioner(), words=micro_tokenizer()))


@pytest.fixture(scope="module")
def url(brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(brush, tmp_path_factory.mktemp("served")) as (found, _):
        yield found


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def call(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_labels_captions_and_answers(url: str, brush: Codebrush) -> None:
    images, labels = [data_url(picture) for picture in PICTURES], ["a red circle", "a blue square"]
    status, reply = call(f"{url}/v1/classify", {"image": images, "labels": labels, "none": True})
    expected = brush.classify(PICTURES, labels, none=True)
    assert (status, reply["model"], reply["object"]) == (200, "micro", "list")
    assert [[each["label"] for each in entry] for entry in reply["data"]] == [[each[0] for each in e] for e in expected]
    assert reply["data"][1][0]["probability"] == pytest.approx(expected[1][0][1], abs=1e-6)
    captions = call(f"{url}/v1/caption", {"image": images, "n": 2})[1]["data"]
    assert [[each["text"] for each in entry] for entry in captions] == [
        [each.text for each in entry] for entry in brush.caption(PICTURES, n=2)
    ]
    (answer,) = call(f"{url}/v1/ask", {"image": images[0], "question": "a red what?"})[1]["data"]
    known = brush.ask(PICTURES[0], "a red what?")
    assert (answer["answer"], answer["guess"]) == (known.text, known.guess)
    assert answer["confidence"] == pytest.approx(known.confidence, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("classify", {"image": "/etc/passwd", "labels": ["a", "b"]}),
        ("classify", {"image": [], "labels": ["a", "b"]}),
        ("classify", {"image": data_url(PICTURES[0]), "labels": ["a dog"]}),
        ("caption", {"image": "data:image/png;base64,aGVsbG8="}),
        ("ask", {"image": data_url(PICTURES[0])}),
    ],
)
def test_what_cannot_be_read_is_a_400(url: str, path: str, body: dict[str, Any]) -> None:
    status, reply = call(f"{url}/v1/{path}", body)
    assert (status, reply["error"]["type"]) == (400, "invalid_request_error")
