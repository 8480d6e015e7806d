"""Who may call: the key, the Host and Origin headers against other sites' pages, the size of a body; and the log."""

import hashlib
import ipaddress
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codebrush.serving.api.problems import Problem, fault
from codebrush.serving.log import log
from codebrush.serving.metrics import Metrics
from codebrush.serving.settings import LOOPBACK, Settings
from codebrush.serving.sign_in import COOKIE, SIGN_IN, key_of_cookie, right_key

OPEN = ("/health", SIGN_IN)  # paths that need no key; /files/ has names that nobody can guess
PARTS = ("/assets/", "/static/")  # of the page, a hundred each time it is opened; they are not logged
API = ("/v1/", "/metrics", "/openapi.json")  # paths that the page's cookie does not open
FILES = "/files/"


class Guard:
    """Lets a request through to the `app`, its caller in `scope["state"]["owner"]`, or answers it with an error."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, begun, headers = time.monotonic(), 500, False, Headers(scope=scope)
        length = _Length(receive, self.settings.max_body)

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            scope.setdefault("state", {})["owner"] = self._admit(scope, headers)
            await self.app(scope, length, answer)
        except _NotSignedIn:
            await RedirectResponse(SIGN_IN, 303)(scope, receive, answer)
        except Problem as problem:
            await problem.reply()(scope, receive, answer)
        except Exception as error:
            reply = fault(error).reply()
            if not begun:
                await reply(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, str(status)).inc()
            took = round(time.monotonic() - began, 3)
            if not scope["path"].startswith(PARTS):
                log("request", method=scope["method"], route=route, status=status, seconds=took)

    def _admit(self, scope: Scope, headers: Headers) -> str:
        """The caller: by its key, or by its address where there are no keys. Raises Problem for one that may not."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Problem(403, f"this server does not answer to the host '{host}': see --allow-host", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            raise Problem(403, "pages of other sites may not call this server", "wrong_origin")
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.settings.max_body:
            raise _too_large(self.settings.max_body)
        address = (scope.get("client") or ("unknown",))[0]
        path = scope["path"]
        if not self.settings.keys or path in OPEN or path.startswith(FILES):
            return f"address {address}"
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = right_key(given.strip().encode() if scheme.lower() == "bearer" else b"", self.settings.keys)
        if key is None and self.settings.page and not path.startswith(API):
            cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
            key = key_of_cookie(cookie, self.settings.keys, time.time())
            if key is None and path == "/":
                raise _NotSignedIn
        if key is None:
            raise Problem(401, "Incorrect API key provided", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. A page that has rebound its name to this machine still says its
        name; a bare address cannot be rebound."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        ours = (*LOOPBACK, self.settings.host, *self.settings.allowed_hosts)
        if name in (each.lower() for each in ours):  # urlsplit gives small letters
            return bool(name)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _NotSignedIn(Exception):
    """The page is asked for by one who has not given a key yet."""


class _Length:
    """Receives a body, and raises Problem when it has more bytes than it may."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive, self.most, self.seen = receive, most, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.seen += len(message.get("body", b""))
        if self.seen > self.most:
            raise _too_large(self.most)
        return message


def _too_large(most: int) -> Problem:
    return Problem(413, f"the request is larger than {most:,} bytes", "request_too_large")


def _netloc(origin: str) -> str | None:
    """The host and port of an Origin header; None if it is damaged."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
