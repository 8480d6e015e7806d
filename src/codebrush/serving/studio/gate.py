"""Mounts Gradio's app at the root of the server, and lets through only those of its routes that the page needs.

Gradio has many more: a proxy, files by URL, saved links, monitoring. None of them is reached, and a request never makes
the server fetch something from another host. Replies say that the page loads nothing from elsewhere.
"""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codebrush.serving.api.problems import Problem
from codebrush.serving.studio.uploads import is_upload, names_other_file

API = "/gradio_api/"
READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(static|assets|svelte)/[^?]*)?"
    rf"|{API}(info|app_id|startup-events|theme\.css|heartbeat/\w+|queue/data|queue/status|upload_progress|file=(?!\w+:).*)"
)
SEND = re.compile(rf"{API}(queue/join|upload|cancel|reset)/?")
HEARTBEAT = f"{API}heartbeat/"
DATA = f"{API}queue/data"
FILE = f"{API}file="
JOIN = f"{API}queue/join"
LOOK_SECONDS = 0.3  # between two looks whether the server stops
DATA_SECONDS = 3.0  # in which pages are told so at most, before their events are broken off
POLICY = (  # Gradio's own scripts are written into the page, and compile templates
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class PageMount(Mount):
    """The page at `/`. Paths and methods that it does not need are left to other routes, and their errors."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See Starlette."""
        if scope["type"] != "http":
            return Match.NONE, {}
        pattern = SEND if scope["method"] == "POST" else READ if scope["method"] in ("GET", "HEAD") else None
        if pattern is None or not pattern.fullmatch(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)


class Gate:
    """Calls Gradio's `app`, and ends its replies that may never end when `stopping()`: one that a browser holds open
    would hold up the server's end."""

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool], grace: float) -> None:
        self.app, self.stopping, self.grace = app, stopping, grace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"], headers["Referrer-Policy"] = POLICY, "same-origin"
            await send(message)

        path = scope["path"].rstrip("/")
        headers = [(name, value) for name, value in scope["headers"] if not name.startswith(b"x-forwarded-")]
        scope = {**scope, "headers": headers}  # by which Gradio would tell all callers another address
        if path.startswith(FILE) and not is_upload(path.removeprefix(FILE)):
            raise Problem(403, "this is no file of the page", "not_found")
        if path == JOIN:
            receive = await _with_uploads_alone(receive)
        if path.startswith(HEARTBEAT):
            await self._until_stopping(self.app(scope, receive, answer), 0)
        elif path == DATA:
            await self._until_stopping(self.app(scope, receive, answer), self.grace)
        else:
            await self.app(scope, receive, answer)

    async def _until_stopping(self, reply: Any, grace: float) -> None:
        task = asyncio.ensure_future(reply)
        try:
            while not task.done() and not self.stopping():
                await asyncio.wait({task}, timeout=LOOK_SECONDS)
            await asyncio.wait({task}, timeout=grace)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _with_uploads_alone(receive: Receive) -> Receive:
    """Receives the same body again. Raises Problem if it names a file that was not uploaded: of an app that is mounted
    Gradio would read any, and fetch one that is named by an address."""
    parts, more = list[bytes](), True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or names_other_file(asked):
        raise Problem(400, "this is not a request of the page", "invalid_value")
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
