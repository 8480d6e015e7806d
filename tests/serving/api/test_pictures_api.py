"""Pictures over HTTP: enlarged; and made again, also edits of the server, from nothing but what is sent."""

import base64
import io
import json
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
from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest, save_png
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.serving.api.images import drawing_options
from codebrush.serving.api.pictures import MOST
from codebrush.serving.api.schemas.images import GenerationRequest
from packs import micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    members = {
        "transformer": micro_transformer(image_embedding=24, source_codes=True),
        "upscaler": Upscaler(UpscalerConfig(width=8, blocks=1)).eval(),
    }
    return Codebrush.from_pretrained(
        write_micro_pack(tmp_path_factory.mktemp("pictures") / "micro", **members), device="cpu"
    )


@pytest.fixture(scope="module")
def client(brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    served = running(brush, tmp_path_factory.mktemp("served"), max_input_pixels=100_000)
    with served as (url, _), httpx.Client(base_url=f"{url}/v1", timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    drawn = Image.new("RGBA", (48, 40), "orange")
    drawn.paste((0, 0, 128, 0), (10, 10, 30, 30))
    return drawn


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def opened(entry: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def manifest_of(content: bytes) -> dict[str, Any]:
    return read_manifest(io.BytesIO(content))


def test_pictures_are_enlarged(client: Any, brush: Codebrush, picture: Image.Image) -> None:
    (expected,) = brush.upscale(picture, 4)
    form = client.post("/upscale", data={"scale": "4"}, files={"image": ("a.png", png(picture))}).json()
    assert (form["size"], form["output_format"], form["model"]) == ("192x160", "png", "micro")
    assert opened(form["data"][0]).tobytes() == expected.tobytes()
    assert opened(form["data"][0]).mode == "RGBA"
    asked = {"image": [data_url(png(picture)), data_url(png(picture.convert("RGB")))], "output_format": "webp"}
    sent = client.post("/upscale", json={**asked, "output_compression": 80}).json()
    assert [(opened(each).format, opened(each).size) for each in sent["data"]] == [("WEBP", (96, 80))] * 2
    url = client.post("/upscale", json={"image": asked["image"][0], "response_format": "url"}).json()["data"][0]["url"]
    manifest = manifest_of(client.get(url).content)
    assert manifest["upscaled"][0]["scale"] == 2
    assert manifest["source"] == "a picture that was sent"
    refused = client.post("/replay", json={"manifest": manifest}).json()["error"]["message"]
    assert refused.endswith("enlarge the file that was sent again, codebrush upscale FILE --scale 2")
    named = {"data": {"response_format": "url"}, "files": {"image": ("../my cat.png", png(picture))}}
    url = client.post("/upscale", **named).json()["data"][0]["url"]
    assert manifest_of(client.get(url).content)["source"] == "my cat.png"
    several = [("image[]", ("a.png", png(picture))), ("image[]", ("b.png", png(picture)))]
    job = client.post("/upscale", data={"wait": "false"}, files=several)
    assert job.status_code == 202
    assert job.json()["kind"] == "upscale"


def test_both_spellings_of_a_file_are_read_and_one_that_is_meant_once_is_not_sent_twice(
    client: Any, picture: Image.Image
) -> None:
    one, other = ("a.png", png(picture)), ("b.png", png(picture.rotate(90)))
    both = client.post("/upscale", files=[("image", one), ("image[]", other)]).json()
    assert len(both["data"]) == 2
    for path, fields, name in (
        ("replay", [("image", one), ("mask", one), ("mask", other)], "mask"),
        ("replay", [("image", one), ("image[]", other)], "image"),
        ("explain", [("image", one), ("image", other), ("text", (None, "a dog"))], "image"),
        ("explain", [("image", one), ("text", (None, "a dog")), ("text[]", (None, "a cat"))], "text"),
    ):
        reply = client.post(f"/{path}", files=fields)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"] == f"'{name}' was sent 2 times: send it once"


SEED = 2**53 + 1  # which a float cannot hold


@pytest.mark.parametrize("sent", [SEED, str(SEED)], ids=["number", "text"])
def test_a_large_seed_keeps_each_digit(client: Any, brush: Codebrush, sent: Any) -> None:
    reply = client.post("/images/generations", json={"prompt": "a red circle", "seed": sent, "quality": "low"}).json()
    (entry,) = reply["data"]
    assert entry["seed"] == str(SEED)
    (expected,) = brush.generate("a red circle", n=1, rerank=1, seed=SEED)
    assert opened(entry).tobytes() == expected.image.tobytes()
    assert client.get(f"/jobs/{reply['job']}").json()["data"][0]["seed"] == str(SEED)
    manifest = manifest_of(base64.b64decode(entry["b64_json"]))
    assert manifest["seed"] == SEED
    again = client.post("/replay", json={"manifest": {**manifest, "seed": str(SEED)}}).json()["data"][0]
    assert opened(again).tobytes() == expected.image.tobytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [("rerank", True), ("cfg", False), ("n", "1"), ("temperature", "0.5"), ("stream", 0), ("wait", "true"),
     ("upscale", True), ("steps", "5"), ("cutouts", True)],
)  # fmt: skip
def test_values_of_another_kind_are_refused(client: Any, name: str, value: Any) -> None:
    reply = client.post("/images/generations", json={"prompt": "a red circle", name: value})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("seed", [float(2**53), -1, "-1", "7.5", "", True, 2**63, "9" * 19])
def test_what_is_no_seed_is_refused(client: Any, seed: Any) -> None:
    reply = client.post("/images/generations", json={"prompt": "a red circle", "seed": seed})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "seed")


def test_a_drawing_is_made_again(client: Any, brush: Codebrush, tmp_path: Path) -> None:
    asked = {"prompt": "a red circle", "seed": 3, "rerank": 2, "upscale": 2}
    made = base64.b64decode(client.post("/images/generations", json=asked).json()["data"][0]["b64_json"])
    for reply in (
        client.post("/replay", files={"image": ("a.png", made)}),
        client.post("/replay", json={"image": data_url(made)}),
    ):
        (entry,) = reply.json()["data"]
        assert entry["identical"] is True
        assert manifest_of(base64.b64decode(entry["b64_json"])) == manifest_of(made)
    for body in ({"json": {"manifest": manifest_of(made)}}, {"data": {"manifest": json.dumps(manifest_of(made))}}):
        body = body if "json" in body else {"files": {"manifest": (None, body["data"]["manifest"])}}
        (entry,) = client.post("/replay", **body).json()["data"]
        assert "identical" not in entry or entry["identical"] is None
        assert opened(entry).tobytes() == Image.open(io.BytesIO(made)).tobytes()
    painted = Image.open(io.BytesIO(made))
    painted.putpixel((0, 0), (1, 2, 3))
    save_png(painted, tmp_path / "painted.png", manifest_of(made))
    (entry,) = client.post("/replay", files={"image": (tmp_path / "painted.png").read_bytes()}).json()["data"]
    assert entry["identical"] is False


@pytest.mark.parametrize(
    ("level", "opacity"), [(9, 100), (0, 0)]
)  # over white a black one with a hole looks as it is read
def test_an_edit_of_the_server_is_made_again(
    client: Any,
    brush: Codebrush,
    picture: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    level: int,
    opacity: int,
) -> None:
    clear = Image.new("RGBA", picture.size, (level, level, level, 255))
    clear.paste((level, level, level, opacity), (24, 0, 40, 30))
    source, mask = ("a.png", png(picture)), ("m.png", png(clear))
    asked = {"prompt": "a blue square", "seed": "5", "rerank": "1"}
    edited = client.post("/images/edits", data=asked, files={"image": source, "mask": mask}).json()["data"][0]
    made = base64.b64decode(edited["b64_json"])
    assert "file" not in json.dumps(manifest_of(made))  # where the server kept the picture is nobody's business
    reply = client.post("/replay", files={"image": ("made.png", made), "source": source, "mask": mask}).json()
    assert reply["data"][0]["identical"] is True
    assert manifest_of(base64.b64decode(reply["data"][0]["b64_json"])) == manifest_of(made)
    for files, missing in (({"mask": mask}, "picture"), ({"source": source}, "mask"), ({}, "picture")):
        refused = client.post("/replay", files={"image": ("made.png", made), **files})
        assert refused.status_code == 400
        assert f"the {missing} that it was made from" in refused.json()["error"]["message"]
    for name, content in (("made", made), ("source", source[1]), ("mask", mask[1])):
        (tmp_path / f"{name}.png").write_bytes(content)
    given = ["replay", str(tmp_path / "made.png"), "--pack", str(brush.pack.folder), "--out", str(tmp_path / "x.png")]
    sources = ["--source", str(tmp_path / "source.png"), "--source", str(tmp_path / "mask.png"), "--json"]
    assert run([*given, *sources]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["identical"] is True


def test_no_file_that_a_manifest_names_is_opened(client: Any, brush: Codebrush, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (32, 32), "red").save(secret)
    manifest = json.loads(json.dumps(brush.vary(secret, n=1, rerank=1)[0].manifest))
    refused = client.post("/replay", json={"manifest": manifest})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
    assert "secret.png, that it was made from is not part of the manifest" in refused.json()["error"]["message"]
    again = client.post("/replay", json={"manifest": manifest, "source": data_url(secret.read_bytes())}).json()
    assert manifest_of(base64.b64decode(again["data"][0]["b64_json"])) == manifest
    run = brush.guide("a dog", steps=1, cutouts=2, size="32x32", init=str(secret))
    list(run)
    guided = json.loads(json.dumps(run.results[0].manifest))
    assert client.post("/replay", json={"manifest": guided}).status_code == 400
    again = client.post("/replay", json={"manifest": guided, "source": data_url(secret.read_bytes())}).json()
    assert opened(again["data"][0]).tobytes() == run.results[0].image.tobytes()
    assert manifest_of(base64.b64decode(again["data"][0]["b64_json"])) == guided


@pytest.fixture(scope="module")
def drawn(brush: Codebrush) -> dict[str, Any]:
    return json.loads(json.dumps(brush.generate("a red circle", n=1, rerank=1)[0].manifest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pack": {"name": "other", "hash": "ff"}}, "made with the pack 'other', which this server does not have"),
        ({"threads": 1000}, "threads 1000: this server takes up to 64"),
        ({"options": {"n": 1, "cfg": 1, "rerank": 10**9}}, "rerank 1000000000: this server takes up to 64"),
        ({"options": {"n": 1, "cfg": 1, "rerank": 1, "size": "9999x9999"}}, "has more than"),
        ({"options": {"n": 1, "cfg": 1, "rerank": 1, "size": 9408}}, "has more than"),
        ({"prompt": "a" * 1_000_000}, "more than 1,000,000 characters"),
        ({"upscaled": [{"scale": 4}] * 3}, "enlarged more than 2 times"),
        ({"method": "interpolate"}, "cannot be replayed"),
        ({"index": 7}, "manifest is damaged"),
        ({"options": 3}, "manifest is damaged"),
        ({"pack": 3}, "manifest is damaged"),
        ({"method": "retrieve", "retrieval": {"prior": "retrieval", "neighbours": 1, "bank": "/x.db"}}, "the database"),
        ({"method": "edit", "edit": {"prompt": "x", "picture": {"sha256": 3}}}, "the picture that it was made from"),
    ],
)
def test_a_manifest_that_cannot_be_replayed_is_refused(
    client: Any, drawn: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    reply = client.post("/replay", json={"manifest": {**drawn, **changes}})
    assert reply.status_code == (404 if "server does not have" in message else 400)
    assert message in reply.json()["error"]["message"]


def test_an_edit_is_enlarged(client: Any, brush: Codebrush, picture: Image.Image) -> None:
    asked = {"prompt": "a dog", "upscale": "2", "seed": "4", "rerank": "1"}  # a form's values are texts
    reply = client.post("/images/edits", data=asked, files={"image": png(picture)})
    expected = brush.edit(picture, "a dog", n=1, seed=4, rerank=1, upscale=2)[0].image
    assert opened(reply.json()["data"][0]).tobytes() == expected.tobytes()


def test_what_an_enlarged_edit_makes_counts(client: Any) -> None:
    files = {"image": png(Image.new("RGB", (60, 60))), "mask": png(Image.new("RGBA", (60, 60)))}
    reply = client.post("/images/edits", data={"prompt": "a dog", "n": "10", "upscale": "4"}, files=files)
    assert reply.status_code == 400
    said = "what is made of the pictures has 576,000 pixels together, more than 400,000: send fewer at a time"
    assert reply.json()["error"]["message"] == said


@pytest.mark.parametrize(("format", "side"), [("webp", 16_383), ("jpeg", 65_500)])
def test_a_picture_too_large_for_a_format_is_a_400(server: tuple[str, Any], format: str, side: int) -> None:
    url, engine = server
    asked = {"prompt": "a dog", "quality": "low", "response_format": "url"}
    job = httpx.post(f"{url}/v1/images/generations", json=asked, timeout=60).headers["x-job-id"]
    Image.new("RGB", (side, 1)).save(engine.find(job).folder / "picture_00.png")
    assert httpx.get(f"{url}/files/{job}/0.{format}", timeout=60).status_code == 200
    Image.new("RGB", (side + 1, 1)).save(engine.find(job).folder / "picture_00.png")
    reply = httpx.get(f"{url}/files/{job}/0.{format}", timeout=60)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "unsupported_value", "output_format")
    assert "ask for png" in error["message"]


def test_the_candidates_of_ten_pictures_can_be_replayed() -> None:
    asked = GenerationRequest.model_validate({"prompt": "a dog", "n": 10, "quality": "high"})
    assert drawing_options(asked, ())["rerank"] == MOST["rerank"]
    asked.n = 2
    assert drawing_options(asked, ())["rerank"] == 16


PNG = png(Image.new("RGB", (8, 8)))
LARGE = png(Image.new("RGB", (400, 300)))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("upscale", {"json": {}}, "Missing required parameter: 'image'"),
        ("upscale", {"json": {"image": data_url(PNG), "scale": 3}}, "Invalid value for 'scale'"),
        ("upscale", {"json": {"image": data_url(PNG), "seed": 3}}, "Unknown parameter: 'seed'"),
        ("upscale", {"json": {"image": data_url(LARGE)}}, "pixels"),
        ("upscale", {"json": {"image": data_url(png(Image.new("RGB", (90, 90)))), "scale": 4}}, "more than 100,000"),
        ("upscale", {"json": {"image": "/etc/passwd"}}, "a data URL must be"),
        ("upscale", {"json": {"image": [data_url(PNG)] * 17}}, "Invalid value for 'image'"),
        ("upscale", {"json": {"image": data_url(b"no picture")}}, "not a picture of a known kind"),
        ("upscale", {"content": b"{"}, "no valid JSON"),
        ("upscale", {"content": b'{"image": "\\ud800"}'}, "no valid JSON"),
        ("upscale", {"content": b"[" * 100_000}, "no valid JSON"),
        ("upscale", {"content": b"[]"}, "must be a JSON object"),
        ("upscale", {"files": {"image": (None, "text")}}, "'image' must be a file"),
        ("upscale", {"files": {"image": PNG, "scale": PNG}}, "'scale' must be one text"),
        ("replay", {"json": {}}, "send the PNG as image, or its manifest"),
        ("replay", {"json": {"image": data_url(PNG), "manifest": {}}}, "send the PNG as image, or its manifest"),
        ("replay", {"json": {"image": data_url(PNG)}}, "does not say how it was made"),
        ("replay", {"json": {"manifest": {}}}, "cannot be replayed"),
        ("replay", {"files": {"manifest": (None, "{")}}, "Invalid value for 'manifest'"),
        ("replay", {"json": {"image": data_url(b"no picture")}}, "not a PNG"),
    ],
)
def test_what_cannot_be_done_is_a_400(client: Any, path: str, body: dict[str, Any], message: str) -> None:
    reply = client.post(f"/{path}", **body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert message in reply.json()["error"]["message"]
