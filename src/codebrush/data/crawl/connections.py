"""HTTP and HTTPS connections that refuse private addresses and servers that never finish their headers."""

import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from codebrush.data.crawl.addresses import is_public


class PrivateAddressError(OSError):
    """A host is at an address that is not on the public internet."""


class Connection(http.client.HTTPConnection):
    """An HTTP connection that refuses private addresses, and gives up waiting for the response headers at `until`.

    The address is checked once it is connected: no trick with names can change it then.
    """

    local = False  # whether private addresses are allowed
    until = float("inf")  # on the clock of time.monotonic

    def connect(self) -> None:
        super().connect()
        assert self.sock is not None
        if not self.local and not is_public(self.sock.getpeername()[0]):
            self.close()
            raise PrivateAddressError(f"{self.host} is at a private address")

    def getresponse(self) -> http.client.HTTPResponse:
        # The socket's time-out counts from byte to byte, so that headers which drip in would never end.
        timer = threading.Timer(max(self.until - time.monotonic(), 0), self._hang_up)
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        finally:
            timer.cancel()
        if time.monotonic() >= self.until:  # headers that were broken off look like short ones
            response.close()
            raise TimeoutError
        return response

    def _hang_up(self) -> None:
        with suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class SecureConnection(http.client.HTTPSConnection, Connection):
    """The same with TLS; the address is checked before the handshake."""


class Handler(urllib.request.HTTPHandler):
    """Opens http and https URLs through these connections."""

    https_request = urllib.request.HTTPHandler.http_request

    def __init__(self, local: bool, until: float, context: ssl.SSLContext) -> None:
        super().__init__()
        self._local, self._until, self._context = local, until, context

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._made(Connection), req)  # pyright: ignore[reportArgumentType]

    def https_open(self, req: urllib.request.Request) -> Any:
        secure = self._made(SecureConnection)
        return self.do_open(secure, req, context=self._context)  # pyright: ignore[reportArgumentType]

    def _made(self, kind: type[Connection]) -> Callable[..., Connection]:
        def make(host: str, **settings: Any) -> Connection:
            connection = kind(host, **settings)
            connection.local, connection.until = self._local, self._until
            return connection

        return make
