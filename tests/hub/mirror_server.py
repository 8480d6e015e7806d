"""A local mirror that can misbehave in every way that mirrors do, and counts what it sends."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """One file and how it is served. `cuts`: after how many bytes each of the next responses breaks off (None: not at
    all); `statuses`: HTTP statuses that the next requests get instead of the file.
    """

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    location: str | None = None
    hang: threading.Event | None = None
    slow: threading.Event | None = None


class Mirror(ThreadingHTTPServer):
    """`files` by path; `asked` has the Range and If-Range headers of each GET, `sent` the bytes of all bodies."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.sent = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def serve(self, path: str, content: bytes, **how: Any) -> str:
        self.files[path] = Served(content, **how)
        return self.url(path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up is part of the tests


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        served = self.server.files.get(self.path)
        if served is None:
            return self.send_error(404)
        if served.hang is not None:
            served.hang.wait(5)
            return None
        if served.location is not None:
            self.send_response(302)
            self.send_header("Location", served.location)
            self.end_headers()
            return None
        if body and served.statuses:
            return self.send_error(served.statuses.pop(0))
        start = self._start(served)
        if start is not None and start >= len(served.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(served.content)}")
            self.end_headers()
            return None
        self._send(served, start, body)
        return None

    def _start(self, served: Served) -> int | None:
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if asked is None or not served.ranges or (condition is not None and condition != served.etag):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _send(self, served: Served, start: int | None, body: bool) -> None:
        rest, whole = served.content[start or 0 :], len(served.content)
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if served.length:
            self.send_header("Content-Length", str(len(rest)))
        if served.etag is not None:
            self.send_header("ETag", served.etag)
        self.send_header("Content-Type", served.type)
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if served.slow is not None:
            served.slow.wait(5)
        cut = served.cuts.pop(0) if served.cuts else None
        self.server.sent += len(rest[:cut])  # before the client has read it all
        self.wfile.write(rest[:cut])


@contextmanager
def running_mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        mirror.shutdown()
        mirror.server_close()
        thread.join()
