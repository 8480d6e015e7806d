"""JSON requests to a server of the tests, pictures as data URLs, and waiting for jobs."""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from PIL import Image


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def call(url: str, body: Any = None, method: str | None = None) -> tuple[int, dict[str, Any]]:
    """GET, or with a body POST: the status and the reply."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def job_when(url: str, job: str, true: Callable[[dict[str, Any]], bool], seconds: float = 300) -> dict[str, Any]:
    """The job when `true`, or when it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = call(f"{url}/v1/jobs/{job}")[1]
        if true(now) or now["state"] in ("done", "failed", "cancelled"):
            return now
        time.sleep(0.05)
    raise AssertionError(now)
