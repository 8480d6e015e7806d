"""A local web server that misbehaves in the ways that servers do, and records its requests."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Page:
    """How requests of one path are answered.

    `statuses` are the statuses of the next requests. `length` is the Content-Length that is sent: True for the right
    one, False for none. `way`: hang (no answer), drip (byte by byte), drip-head (headers byte by byte), reset.
    """

    content: bytes = b""
    type: str | None = "image/png"
    statuses: list[int] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: bool | int = True
    way: str = ""


class RudeServer(ThreadingHTTPServer):
    """`pages` by path; `asked` counts the requests of each path, `agents` and `times` are those of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.times: list[float] = []
        self.running = self.most_at_once = 0
        self.over = threading.Event()
        self.lock = threading.Lock()

    def serve(self, path: str, content: bytes = b"", **how: Any) -> str:
        self.pages[path] = Page(content, **how)
        return self.url(path)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that give up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    server: RudeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            server.agents.add(self.headers["User-Agent"])
            server.times.append(time.monotonic())
            server.running += 1
            server.most_at_once = max(server.most_at_once, server.running)
        try:
            self._answer(server.pages.get(self.path))
        finally:
            with server.lock:
                server.running -= 1

    def _answer(self, page: Page | None) -> None:
        if page is None:
            return self.send_error(404)
        if page.way == "hang":
            self.server.over.wait(5)
            return None
        if page.way == "reset":  # closing with a linger of 0 sends a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return None
        if page.way == "drip-head":
            return self._drip(b"HTTP/1.0 200 OK\r\nX-Slow: " + b"x" * 500)
        status = page.statuses.pop(0) if page.statuses else 200
        self.send_response(status)
        for name, value in page.headers:
            self.send_header(name, value)
        if page.type is not None:
            self.send_header("Content-Type", page.type)
        if page.length is not False:
            self.send_header("Content-Length", str(len(page.content) if page.length is True else page.length))
        self.end_headers()
        if page.way == "drip":
            return self._drip(page.content)
        while page.way == "endless" and not self.server.over.is_set():
            self.wfile.write(page.content)
        self.wfile.write(page.content)
        return None

    def _drip(self, data: bytes) -> None:
        for place in range(len(data)):
            if self.server.over.wait(0.02):
                return
            self.wfile.write(data[place : place + 1])
            self.wfile.flush()


@contextmanager
def rude_server() -> Iterator[RudeServer]:
    with RudeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            with suppress(RuntimeError):
                thread.join(5)
