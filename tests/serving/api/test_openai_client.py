"""OpenAI's own client against a real server: pictures, streams, embeddings, models, jobs, every kind of error."""

import base64
import concurrent.futures
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("openai", reason="needs the client openai")

import openai
import torch
from PIL import Image
from server_thread import openai_client

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.serving.api.images import job_request
from codebrush.serving.api.schemas.images import GenerationRequest
from codebrush.serving.settings import Settings
from codebrush.serving.work.kinds import Kind

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def client(server: tuple[str, Any]) -> Any:
    return openai_client(server[0])


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def fetch(url: str, **options: Any) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=60) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_a_picture_is_the_command_lines_and_can_be_replayed(
    client: Any, served_brush: Codebrush, tmp_path: Path
) -> None:
    reply = client.images.generate(model="micro", prompt=PROMPT, n=2, size="auto", extra_body={"seed": 7})
    expected = served_brush.generate(PROMPT, n=2, seed=7)
    assert [opened(each.b64_json).tobytes() for each in reply.data] == [each.image.tobytes() for each in expected]
    assert [(each.seed, each.index) for each in reply.data] == [(7, each.manifest["index"]) for each in expected]
    assert (reply.size, reply.output_format, reply.quality, reply.background) == ("32x32", "png", "medium", "opaque")
    usage = reply.usage
    tokens = len(served_brush.tokenizer.ids([PROMPT])[0])
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (tokens, 2 * 64, tokens + 2 * 64)
    assert (usage.input_tokens_details.text_tokens, usage.input_tokens_details.image_tokens) == (tokens, 0)
    file = tmp_path / "picture.png"
    file.write_bytes(base64.b64decode(reply.data[0].b64_json))
    assert served_brush.replay(read_manifest(file)).image.tobytes() == expected[0].image.tobytes()


def test_without_a_seed_each_request_draws_others(client: Any) -> None:
    seeds = {client.images.generate(prompt=PROMPT, quality="low").data[0].seed for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize(("format", "mime"), [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_urls_are_served_in_each_format(client: Any, format: str, mime: str) -> None:
    lossy = {} if format == "png" else {"output_compression": 60}
    asked = {"prompt": PROMPT, "output_format": format, "quality": "low", "extra_body": {"seed": 1}, **lossy}
    (given,) = client.images.generate(response_format="url", **asked).data
    status, content, headers = fetch(given.url)
    assert (status, headers["content-type"], given.b64_json) == (200, mime, None)
    assert Image.open(io.BytesIO(content)).format == format.upper()
    (inline,) = client.images.generate(response_format="b64_json", **asked).data
    assert base64.b64decode(inline.b64_json) == content
    for wrong in ("9.png", "0.gif", "latest.png", "..%2F..%2Fjobs.sqlite", "0"):
        assert fetch(given.url.rpartition("/")[0] + "/" + wrong)[0] == 404


def test_a_stream_shows_the_picture_half_drawn_then_whole(client: Any, served_brush: Codebrush) -> None:
    asked = {"prompt": PROMPT, "stream": True, "partial_images": 2, "extra_body": {"seed": 3}}
    events = list(client.images.generate(**asked))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    for event in events:
        assert (event.size, event.quality, event.background, event.output_format) == (
            "32x32", "medium", "opaque", "png"
        )  # fmt: skip
        assert event.created_at > 0
    assert events[2].usage.output_tokens == 64
    expected = served_brush.generate(PROMPT, n=1, seed=3)[0].image.tobytes()
    assert opened(events[2].b64_json).tobytes() == expected
    assert len({event.b64_json for event in events}) == 3


def test_guidance_streams_its_steps(client: Any, served_brush: Codebrush) -> None:
    options = {"method": "guide", "steps": 4, "seed": 2, "init": "random", "cutouts": 2}
    events = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=1, extra_body=options))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "completed"]
    (expected,) = served_brush.generate(PROMPT, n=1, **options)
    assert opened(events[1].b64_json).tobytes() == expected.image.tobytes()


def test_a_stream_says_what_went_wrong(client: Any) -> None:
    with pytest.raises(openai.APIError, match="is not a number"):
        list(client.images.generate(prompt="a dog:1:2:3:4", stream=True))


def test_many_callers_at_once_each_get_their_own(client: Any, served_brush: Codebrush) -> None:
    def ask(seed: int) -> bytes:
        reply = client.images.generate(prompt=PROMPT, extra_body={"seed": seed, "rerank": 2})
        return opened(reply.data[0].b64_json).tobytes()

    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        found = list(callers.map(ask, range(8)))
    expected = served_brush.generate([PROMPT] * 8, n=1, seed=list(range(8)), rerank=2)
    assert found == [each[0].image.tobytes() for each in expected]


@pytest.mark.parametrize(
    ("asked", "status", "code", "param", "message"),
    [
        ({"prompt": ""}, 400, "invalid_value", "prompt", "at least 1 character"),
        ({"prompt": "x" * 4001}, 400, "invalid_value", "prompt", "at most 4000"),
        ({"prompt": "a dog:1:2:3:4"}, 400, "invalid_value", None, "is not a number"),
        ({"prompt": "a", "n": 11}, 400, "invalid_value", "n", "less than or equal to 10"),
        ({"prompt": "a", "model": "dall-e-3"}, 404, "model_not_found", None, "no model 'dall-e-3'"),
        ({"prompt": "a", "size": "big"}, 400, "invalid_value", "size", "pattern"),
        ({"prompt": "a", "size": "4096x4096"}, 400, "invalid_value", "size", "more than 1,048,576 pixels"),
        ({"prompt": "a", "size": "8x8"}, 400, "invalid_value", None, "smaller than the pack's 32x32"),
        ({"prompt": "a", "background": "transparent"}, 400, "unsupported_value", "background", "opaque"),
        ({"prompt": "a", "output_compression": 50}, 400, "unsupported_value", "output_compression", "never lossy"),
        ({"prompt": "a", "partial_images": 2}, 400, "invalid_value", "partial_images", "for stream"),
        ({"prompt": "a", "extra_body": {"seed": -1}}, 400, "invalid_value", "seed", "greater than or equal to 0"),
        ({"prompt": "a", "extra_body": {"cfgg": 2}}, 400, "unknown_parameter", "cfgg", "did you mean cfg"),
        ({"prompt": "a", "extra_body": {"guidance_scale": 2}}, 400, "unknown_parameter", "guidance_scale", "mean cfg"),
        ({"prompt": "a", "extra_body": {"cutouts": 2}}, 400, "invalid_value", "cutouts", "add method guide"),
        ({"prompt": "a", "extra_body": {"upscale": 2}}, 400, "unsupported_by_model", None, "upscaler"),
        ({"prompt": "a", "style": "noto"}, 400, "unsupported_by_model", None, "no styles"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_openais_form(
    client: Any, asked: dict[str, Any], status: int, code: str, param: str | None, message: str
) -> None:
    with pytest.raises(openai.APIStatusError) as found:
        client.images.generate(**asked)
    error = found.value
    assert (error.status_code, error.code, error.param, error.type) == (status, code, param, "invalid_request_error")
    assert message in error.message


@pytest.mark.parametrize("name", ["init", "mask", "target", "image_prompt", "palette", "other_clip", "bank", "folder"])
def test_no_request_names_a_file(client: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a", extra_body={"method": "guide", name: str(tmp_path)})


def test_models_are_the_packs(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by, model.image_size) == ("micro", "model", "CC0-1.0", 32)
    assert model.members == ["clip", "vqgan", "transformer"]
    assert client.models.retrieve("micro") == model
    with pytest.raises(openai.NotFoundError, match="no model 'gpt/4'"):
        client.models.retrieve("gpt/4")


def test_embeddings_are_the_packs_in_both_encodings(client: Any, served_brush: Codebrush) -> None:
    picture = Image.new("RGB", (48, 32), "orange")
    file = io.BytesIO()
    picture.save(file, "PNG")
    texts = ["a dog", f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", "a red circle:2"]
    expected = [served_brush.embed_text("a dog"), served_brush.embed_images(picture), served_brush.embed_text(texts[2])]
    wanted = np.concatenate([each.numpy() for each in expected])
    usual = client.embeddings.create(model="micro", input=texts)  # the client asks for base64 by itself
    numbers = client.embeddings.create(model="micro", input=texts, encoding_format="float")
    for reply in (usual, numbers):
        assert [each.index for each in reply.data] == [0, 1, 2]
        np.testing.assert_allclose([each.embedding for each in reply.data], wanted, atol=1e-6)
        assert reply.usage.prompt_tokens == reply.usage.total_tokens > 3
    (short,) = client.embeddings.create(model="micro", input="a dog", dimensions=8).data
    np.testing.assert_allclose(short.embedding, wanted[0, :8] / np.linalg.norm(wanted[0, :8]), atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", " "]}, "input[1]"),
        ({"input": ["data:image/png;base64,###"]}, "input[0]"),
        ({"input": ["data:image/png;base64,aGVsbG8="]}, None),
        ({"input": "a", "dimensions": 25}, "dimensions"),
        ({"input": [[1, 2]]}, "input"),
    ],
)
def test_what_cannot_be_embedded_is_named(client: Any, asked: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.embeddings.create(model="micro", **asked)
    assert str(found.value.param or "").partition(".")[0] == (param or "")


def test_a_job_is_followed_looked_at_and_cancelled(client: Any, server: tuple[str, Any]) -> None:
    url = server[0]
    body = {"prompt": PROMPT, "method": "guide", "steps": 2000, "cutouts": 2, "wait": False, "init": "random"}
    body |= {"partial_images": 3}
    headers = {"content-type": "application/json"}
    status, reply, got = fetch(f"{url}/v1/images/generations", data=json.dumps(body).encode(), headers=headers)
    job = json.loads(reply)
    assert (status, got["location"], job["object"]) == (202, f"/v1/jobs/{job['id']}", "job")
    with urllib.request.urlopen(f"{url}/v1/jobs/{job['id']}/events", timeout=60) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        for line in events:
            if not line.startswith(b"data:"):
                continue
            now = json.loads(line[5:])
            if now["state"] == "running" and now["progress"]["step"] >= 2:
                break
    assert now["progress"]["of"] == 2000
    assert now["progress"]["seconds_left"] > 0
    status, _, _ = fetch(f"{url}/v1/jobs/{job['id']}", method="DELETE")
    assert status == 200
    with urllib.request.urlopen(f"{url}/v1/jobs/{job['id']}/events", timeout=60) as events:
        last = [json.loads(line[5:]) for line in events if line.startswith(b"data:")][-1]
    assert last["state"] == "cancelled"
    status, reply, _ = fetch(f"{url}/v1/jobs/job_unknown")
    assert (status, json.loads(reply)["error"]["code"]) == (404, "not_found")


def test_health_figures_and_the_document(server: tuple[str, Any]) -> None:
    url = server[0]
    status, body, _ = fetch(f"{url}/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    text = fetch(f"{url}/metrics")[1].decode()
    assert 'codebrush_requests_total{route="/health",status="200"}' in text
    assert "codebrush_queue 0.0" in text
    document = json.loads(fetch(f"{url}/openapi.json")[1])
    routes = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes >= {"post /v1/images/generations", "post /v1/embeddings", "get /v1/jobs/{job}", "get /metrics"}
    asked = document["components"]["schemas"]["GenerationRequest"]
    assert {"prompt", "n", "seed", "cutouts", "learning_rate"} <= set(asked["properties"])
    assert asked["examples"]
    assert "422" not in document["paths"]["/v1/embeddings"]["post"]["responses"]
    assert fetch(f"{url}/docs")[0] == 404  # it would load scripts from another host


def test_too_little_memory_is_not_tried_again(serve: Any) -> None:
    url, engine = serve()
    calls = []

    def large(*given: Any) -> Any:
        calls.append(given)
        return torch.empty(2**50)

    engine.kinds["generate"] = Kind(large)
    with pytest.raises(openai.APIStatusError, match="not enough memory for this: ask for less") as refused:
        openai_client(url).with_options(max_retries=2).images.generate(model="micro", prompt=PROMPT)
    assert (refused.value.status_code, refused.value.code, len(calls)) == (413, "out_of_memory", 1)


def test_the_pack_chooses_the_method() -> None:
    """A pack with a flow alone draws by flow, unless the request says something else."""
    assert "method" not in job_request(GenerationRequest(prompt="a dog"), Settings())
    assert job_request(GenerationRequest(prompt="a dog", method="flow"), Settings())["method"] == "flow"
