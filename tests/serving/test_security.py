"""Keys, hosts, origins, sizes, whose job it is, a full queue, and what the log does not say."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')

from codebrush.errors import UsageError
from codebrush.serving.jobs.engine import Limits
from codebrush.serving.settings import Settings
from engine_helpers import ended


def call(url: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any], Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, given), timeout=60) as reply:
            return reply.status, json.loads(reply.read()), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def code(reply: tuple[int, dict[str, Any], Any]) -> tuple[int, str]:
    return reply[0], reply[1]["error"]["code"]


def test_a_key_is_asked_for(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    url, _ = serve(keys=("first-key", "second-key"))
    assert code(call(f"{url}/v1/models")) == (401, "invalid_api_key")
    for wrong in ("Bearer", "Bearer ", "Bearer first-ke", "Basic first-key", "first-key", "Bearer first-key2"):
        assert code(call(f"{url}/v1/models", authorization=wrong)) == (401, "invalid_api_key")
    for key in ("first-key", "second-key"):
        assert call(f"{url}/v1/models", authorization=f"Bearer {key}")[0] == 200
    assert call(f"{url}/health")[0] == 200
    asked = {"prompt": "a secret wish", "wait": False}
    job = call(f"{url}/v1/images/generations", asked, authorization="Bearer first-key")[1]["id"]
    assert call(f"{url}/v1/jobs/{job}", authorization="Bearer first-key")[0] == 200
    assert code(call(f"{url}/v1/jobs/{job}", authorization="Bearer second-key")) == (404, "not_found")
    logged = caplog.text
    assert '"route": "/v1/jobs/{job}"' in logged
    for secret in ("first-key", "second-key", "secret wish"):
        assert secret not in logged


def test_other_names_and_other_sites_are_refused(serve: Any) -> None:
    url, _ = serve(allowed_hosts=("Brush.example",))
    for host in ("evil.example", "localhost.evil.example", "", "[", "127.0.0.1.evil.example"):
        assert code(call(f"{url}/v1/models", host=host)) == (403, "wrong_host")
    for host in ("localhost:9", "brush.example", "BRUSH.EXAMPLE:80", "192.168.0.7:80", "[::1]:7860"):
        assert call(f"{url}/v1/models", host=host)[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://["):
        assert code(call(f"{url}/v1/models", origin=origin)) == (403, "wrong_origin")
    status, _, headers = call(f"{url}/v1/models", origin=url)
    assert status == 200
    assert "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff"


def test_a_large_body_is_refused(serve: Any) -> None:
    url, _ = serve(max_body=1000)
    asked = {"input": "x" * 1000}
    assert code(call(f"{url}/v1/embeddings", asked)) == (413, "request_too_large")
    chunked = urllib.request.Request(
        f"{url}/v1/embeddings", iter([json.dumps(asked).encode()]), {"content-type": "application/json"}
    )  # without a length
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(chunked, timeout=60)
    assert found.value.code == 413


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"prompt": "\\ud800"}', b'{"prompt": null}', b'{"prompt": "a", "cfg": NaN}']
)
def test_what_is_no_request_is_a_400(server: tuple[str, Any], body: bytes) -> None:
    status, reply, _ = call(f"{server[0]}/v1/images/generations", body)
    assert status == 400
    assert set(reply["error"]) == {"message", "type", "param", "code"}


def test_what_is_not_there_is_in_the_same_form(server: tuple[str, Any]) -> None:
    assert call(f"{server[0]}/v1/chat/completions", {})[1]["error"]["type"] == "invalid_request_error"
    assert call(f"{server[0]}/v1/embeddings")[0] == 405


def test_a_full_queue_says_when_to_come_again(serve: Any) -> None:
    url, _ = serve(limits=Limits(queue=1))
    slow = {"prompt": "a", "method": "guide", "steps": 2000, "cutouts": 2, "init": "random", "wait": False}
    jobs = [call(f"{url}/v1/images/generations", slow)[1]["id"]]
    while call(f"{url}/v1/jobs/{jobs[0]}")[1]["state"] == "queued":
        pass  # until the worker has it
    jobs.append(call(f"{url}/v1/images/generations", slow)[1]["id"])
    reply = call(f"{url}/v1/images/generations", slow)
    assert code(reply) == (429, "queue_full")
    assert int(reply[2]["retry-after"]) >= 1
    for job in jobs:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/jobs/{job}", method="DELETE"), timeout=60)


def test_a_caller_who_goes_away_is_not_waited_for(serve: Any) -> None:
    url, engine = serve()
    slow = {"prompt": "a", "method": "guide", "steps": 2000, "cutouts": 2, "init": "random"}
    asked = urllib.request.Request(
        f"{url}/v1/images/generations", json.dumps(slow).encode(), {"content-type": "application/json"}
    )
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(asked, timeout=0.5)
    for job in engine.live("generate"):
        assert ended(job).state == "cancelled"


def test_unexpected_errors_tell_nothing(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, engine = serve()

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(engine, "submit", broken)
    status, reply, headers = call(f"{url}/v1/images/generations", {"prompt": "a"})
    assert (status, reply["error"]["code"], headers["x-should-retry"]) == (500, "internal_error", "false")
    assert "secret" not in json.dumps(reply)


def test_nobody_listens_beyond_this_machine_by_mistake() -> None:
    with pytest.raises(UsageError, match=r"0\.0\.0\.0 can be reached from other machines: set CODEBRUSH_API_KEY"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", no_key=True).host == Settings(host="0.0.0.0", keys=("a",)).host
    assert "a-key" not in repr(Settings(keys=("a-key",)))
