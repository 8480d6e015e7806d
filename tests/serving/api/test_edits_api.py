"""OpenAI's client sends pictures: edits with and without a mask, several at once, variations, and what is refused."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("multipart", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("openai", reason="needs the client openai")

import httpx
import openai
from PIL import Image
from server_thread import openai_client, running

from codebrush import Codebrush
from packs import micro_transformer, write_micro_pack

PROMPT = "a blue square"


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    painter = micro_transformer(image_embedding=24, source_codes=True)
    return Codebrush.from_pretrained(write_micro_pack(tmp_path_factory.mktemp("edits") / "micro", transformer=painter))


@pytest.fixture(scope="module")
def client(brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(brush, tmp_path_factory.mktemp("served")) as (url, _):
        yield openai_client(url)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    drawn = Image.new("RGB", (48, 40), "orange")
    drawn.paste("navy", (10, 10, 30, 30))
    return drawn


def mask_of(clear: int, opaque: int = 255, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A mask whose right half has the alpha `clear`."""
    mask = Image.new("RGBA", size, (9, 9, 9, opaque))
    mask.paste((9, 9, 9, clear), (24, 0, *size))
    return mask


def sent(picture: Image.Image, name: str = "picture.png") -> tuple[str, bytes, str]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return name, file.getvalue(), "image/png"


def received(reply: Any) -> list[bytes]:
    return [Image.open(io.BytesIO(base64.b64decode(each.b64_json))).tobytes() for each in reply.data]


def pixels(results: Any) -> list[bytes]:
    return [result.image.tobytes() for result in results]


@pytest.mark.parametrize(("clear", "opaque"), [(0, 255), (100, 180)], ids=["clean", "half-transparent"])
def test_a_mask_says_what_changes(client: Any, brush: Codebrush, picture: Image.Image, clear: int, opaque: int) -> None:
    reply = client.images.edit(
        image=sent(picture), mask=sent(mask_of(clear, opaque)), prompt=PROMPT, n=2, size="auto",
        extra_body={"seed": 5, "rerank": 2},
    )  # fmt: skip
    white = Image.new("L", picture.size)
    white.paste(255, (24, 0, *picture.size))
    assert received(reply) == pixels(brush.edit(picture, PROMPT, n=2, seed=5, rerank=2, mask=white))
    assert reply.size == "48x40"
    assert reply.usage.input_tokens_details.image_tokens == 64


def test_without_a_mask_the_prompt_redraws(client: Any, brush: Codebrush, picture: Image.Image) -> None:
    asked = {"prompt": PROMPT, "extra_body": {"seed": 5, "strength": 0.4, "rerank": 1}}
    reply = client.images.edit(image=[sent(picture), sent(picture.rotate(90))], **asked)  # sent as image[]
    expected = brush.edit([picture, picture.rotate(90)], PROMPT, n=1, seed=5, strength=0.4, rerank=1)
    assert received(reply) == pixels(expected.results)


def test_an_edit_is_streamed(client: Any, brush: Codebrush, picture: Image.Image) -> None:
    asked = {"prompt": PROMPT, "stream": True, "partial_images": 1, "extra_body": {"seed": 5, "rerank": 1}}
    events = list(client.images.edit(image=sent(picture), **asked))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert Image.open(io.BytesIO(base64.b64decode(events[0].b64_json))).size == (32, 32)
    assert events[-1].usage.output_tokens == 64
    assert [Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json))).tobytes()] == pixels(
        brush.edit(picture, PROMPT, n=1, seed=5, rerank=1)
    )


def test_a_half_painted_part_is_shown_in_its_picture(client: Any, picture: Image.Image) -> None:
    asked = {"prompt": PROMPT, "stream": True, "partial_images": 2, "extra_body": {"seed": 5, "rerank": 2}}
    events = list(client.images.edit(image=sent(picture), mask=sent(mask_of(0)), **asked))
    assert [event.type.rsplit(".")[-1] for event in events] == ["partial_image"] * 2 + ["completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    first, second, whole = (Image.open(io.BytesIO(base64.b64decode(event.b64_json))) for event in events)
    assert first.size == second.size == whole.size == picture.size
    kept = (0, 0, 16, picture.height)  # left of the mask and its border
    assert first.crop(kept).tobytes() == whole.crop(kept).tobytes() == picture.crop(kept).tobytes()
    assert len({each.tobytes() for each in (first, second, whole)}) == 3


@pytest.mark.parametrize("name", ["mask", "prompt"])
def test_what_is_meant_once_is_not_sent_twice(client: Any, picture: Image.Image, name: str) -> None:
    parts = {
        "image": sent(picture), "prompt": (None, b"a dog", "text/plain"), "mask": sent(mask_of(0), "mask.png")
    }  # fmt: skip
    form = [*parts.items(), (name, parts[name])]
    reply = httpx.post(f"{client.base_url}images/edits", files=form, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)
    assert reply.json()["error"]["message"] == f"'{name}' was sent 2 times: send it once"


def test_variations(client: Any, brush: Codebrush, picture: Image.Image) -> None:
    asked = {"n": 2, "response_format": "b64_json", "extra_body": {"seed": 6, "rerank": 2}}
    reply = client.images.create_variation(image=sent(picture), **asked)
    assert received(reply) == pixels(brush.vary(picture, n=2, seed=6, rerank=2))
    with pytest.raises(openai.BadRequestError, match="the strength of a variation is for the method flow"):
        client.images.create_variation(image=sent(picture), extra_body={"strength": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": mask_of(255)}, "the mask has no transparency"),
        ({"mask": mask_of(0, size=(40, 40))}, "make them the same size"),
        ({"mask": mask_of(0, 0)}, "covers the whole picture"),
        ({"image": ("a.png", b"no picture", "image/png")}, "picture"),
        ({"image": "text"}, "must be a file"),
        ({"size": "1024x1024"}, "the picture sets the size"),
        ({"n": 11}, "less than or equal to 10"),
        ({"extra_body": {"cutouts": 3}}, "Unknown parameter: 'cutouts'"),
        ({"extra_body": {"strength": 0.5}, "mask": mask_of(0)}, "leave it out with a mask"),
    ],
)
def test_what_cannot_be_edited_is_named(
    client: Any, picture: Image.Image, changes: dict[str, Any], message: str
) -> None:
    asked = {"image": sent(picture), "prompt": PROMPT, **changes}
    files = {name: sent(each) if isinstance(each, Image.Image) else each for name, each in asked.items()}
    if files["image"] == "text":
        files |= {"image": sent(picture), "extra_body": {"image": "text"}}
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.edit(**files)
