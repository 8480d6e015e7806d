"""A server of S3's interface on this machine, with one empty bucket."""

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "pictures"


@contextmanager
def storage_server() -> Iterator[dict[str, str]]:
    """The variables of the environment by which Lance finds the server and its bucket."""
    server_module = pytest.importorskip("moto.server", reason="moto, which serves S3's interface, is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        yield {
            "AWS_ENDPOINT": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
    finally:
        server.stop()
