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


def test_small_files_of_huge_pictures_are_refused_together(url: str) -> None:
    huge = data_url(Image.new("1", (8000, 8000)))
    status, reply = call(f"{url}/v1/classify", {"image": [huge] * 5, "labels": ["a dog", "a cat"]})
    assert (status, reply["error"]["code"]) == (400, "invalid_value")
    said = "the pictures have 320,000,000 pixels together, more than 256,000,000: send fewer at a time"
    assert reply["error"]["message"] == said
    assert call(f"{url}/v1/embeddings", {"input": [huge] * 5, "model": "micro"})[1]["error"]["message"] == said


def test_large_later_pages_count_too(url: str) -> None:
    pages, file = [Image.new("1", (1, 1), 1), Image.new("1", (8000, 8000), 1)], io.BytesIO()
    pages[1].putpixel((0, 0), 0)  # else it would be plain like the first, and not shown
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], compression="group4")
    huge = f"data:image/tiff;base64,{base64.b64encode(file.getvalue()).decode()}"
    status, reply = call(f"{url}/v1/classify", {"image": [huge] * 5, "labels": ["a dog", "a cat"]})
    assert (status, reply["error"]["code"]) == (400, "invalid_value")
    assert "have 320,000,000 pixels together" in reply["error"]["message"]


@pytest.mark.parametrize("name", ["query", "path", "body", "str", "list[x]"])
def test_an_unknown_parameter_may_have_any_name(url: str, name: str) -> None:
    status, reply = call(f"{url}/v1/classify", {"image": data_url(PICTURES[0]), "labels": ["a", "b"], name: 1})
    assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, name, "unknown_parameter")


def test_a_picture_is_explained(url: str, brush: Codebrush) -> None:
    picture = PICTURES[0].copy()
    picture.paste("navy", (4, 8, 20, 24))  # of one colour, nothing of it would count more than the rest
    status, reply = call(f"{url}/v1/explain", {"image": data_url(picture), "text": "a red circle"})
    (entry,) = reply["data"]
    expected = brush.explain(picture, "a red circle")
    assert (status, reply["model"], entry["text"]) == (200, "micro", "a red circle")
    assert entry["cosine"] == pytest.approx(expected.maps.score, abs=1e-6)
    assert (entry["method"], entry["shown"]) == (expected.maps.method, expected.presence.shown)
    assert (entry["doubt"], entry["level"], entry["seen"]) == (expected.doubt, expected.presence.level, 1)
    assert [word["word"] for word in entry["words"]] == ["red", "circle"]
    assert entry["words_without_map"] == ["a"]
    assert entry["faithfulness"]["insertion"] == pytest.approx(expected.faithfulness.insertion, abs=1e-6)
    maps = [entry["map"], *(word["map"] for word in entry["words"])]
    decoded = [Image.open(io.BytesIO(base64.b64decode(each))).tobytes() for each in maps]
    assert decoded == [each.tobytes() for each in expected.overlays()]
    assert len(set(decoded)) == 3


def test_words_are_explained_one_by_one(url: str) -> None:
    asked = {"image": data_url(PICTURES[0]), "words": ["circle", "a blue square"], "method": "occlusion"}
    data = call(f"{url}/v1/explain", asked)[1]["data"]
    assert [entry["text"] for entry in data] == asked["words"]
    assert [[word["map"] is None for word in entry["words"]] for entry in data] == [[True], [False, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "give either text or words"),
        ({"words": ["a"]}, "give either text or words"),
        ({"text": " "}, "the text is empty"),
        ({"method": "lime"}, "Invalid value for 'method'"),
        ({"image": "data:image/png;base64,aGVsbG8="}, "not a picture of a known kind"),
        ({"threshold": 1}, "Unknown parameter: 'threshold'"),
    ],
)
def test_what_cannot_be_explained_is_named(url: str, changes: dict[str, Any], message: str) -> None:
    asked = {"image": data_url(PICTURES[0]), "text": "a red circle", **changes}
    status, reply = call(f"{url}/v1/explain", {name: value for name, value in asked.items() if value is not None})
    assert status == 400
    assert message in reply["error"]["message"]
    assert "Value error" not in reply["error"]["message"]
