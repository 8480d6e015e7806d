"""Mounts Gradio's app at the root of the server, and lets through only those of its routes that the page needs.

Gradio has many more: a proxy, files by URL, saved links, monitoring. None of them is reached, and a request never makes
the server fetch something from another host. Replies say that the page loads nothing from elsewhere.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gradio.utils import get_upload_folder
from starlette.datastructures import MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codebrush.serving.api.problems import Problem

API = "/gradio_api/"
READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(static|assets|svelte)/[^?]*)?"
    rf"|{API}(info|app_id|startup-events|theme\.css|heartbeat/\w+|queue/data|queue/status|upload_progress|file=(?!\w+:).*)"
)
SEND = re.compile(rf"{API}(queue/join|upload|cancel|reset)/?")
HEARTBEAT = f"{API}heartbeat/"
DATA = f"{API}queue/data"
JOIN = f"{API}queue/join"
LOOK_SECONDS = 0.3  # between two looks whether the server stops
DATA_SECONDS = 3.0  # in which pages are told so, before their events are broken off
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

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool]) -> None:
        self.app, self.stopping = app, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"], headers["Referrer-Policy"] = POLICY, "same-origin"
            await send(message)

        path = scope["path"].rstrip("/")
        if path == JOIN:
            receive = await _with_uploads_alone(receive)
        if path.startswith(HEARTBEAT):
            await self._until_stopping(self.app(scope, receive, answer), 0)
        elif path == DATA:
            await self._until_stopping(self.app(scope, receive, answer), DATA_SECONDS)
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
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or _names_other_file(asked):
        raise Problem(400, "this is not a request of the page", "invalid_value")
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _names_other_file(value: Any) -> bool:
    waiting, folder = [value], os.path.join(os.path.abspath(get_upload_folder()), "")
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            path = each.get("path")
            if isinstance(path, str) and not os.path.abspath(path).startswith(folder):
                return True
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return False
