"""Downloads a file over http(s) and resumes a partial download.

A partial file `x.part` is resumed with a Range request. Beside it `x.part.json` holds its URL and validator (ETag or
Last-Modified), so that If-Range makes the server start over if its file has changed.
"""

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codebrush.errors import PackError
from codebrush.progress import Progress
from codebrush.version import __version__

CHUNK = 1 << 18
RETRIED = frozenset((408, 425, 429))  # statuses that may go away after a wait, like all 5xx


class Refused(Exception):
    """This mirror does not provide the file; another one may."""


class Interrupted(Exception):
    """The connection or the server failed; the same mirror may work again after a while."""


class WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to web addresses, and never from https to plain http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request for the new address; Refused if it must not be followed."""
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise Refused(f"redirects to {scheme}:")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only; urllib's default one would also open local files and ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        WebRedirects(),
    ):
        opener.add_handler(handler)
    return opener


class Transfer:
    """The download of one file to the partial file `part`.

    `size` is the file's size in bytes, if known. `has_sha256` says that the whole file is verified in the end, so that
    it may be put together from several mirrors. `timeout` is in seconds without a byte. `check_room` is called with the
    file's size as soon as the server gives it.
    """

    def __init__(
        self,
        part: Path,
        *,
        size: int | None,
        has_sha256: bool,
        timeout: float,
        progress: Progress | None,
        check_room: Callable[[int], None],
    ) -> None:
        self.part, self.note = part, part.with_name(part.name + ".json")
        self.size, self.has_sha256, self.timeout = size, has_sha256, timeout
        self.progress, self.check_room = progress, check_room
        self.resumed = False

    def received(self) -> int:
        """The size of the partial file in bytes."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def discard(self) -> None:
        """Remove the partial file and the note beside it."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def fetch(self, url: str, may_be_html: bool) -> str:
        """Complete the partial file from `url` and return the sha256 (hex) of the whole file.

        `may_be_html` allows a web page; otherwise one is taken for an error message.

        Raises:
            Refused: if this server does not provide the file.
            Interrupted: if a later attempt may succeed.
            PackError: if the file cannot be written.
        """
        offset, validator = self._resumable(url)
        self.resumed = offset > 0
        if offset and offset == self.size:
            return self._digest().hexdigest()
        response = self._open(url, offset, validator)
        if response is None:  # the server says that the file is complete
            return self._digest().hexdigest()
        with response:
            offset, total = self._read_head(response, offset, may_be_html)
            self.resumed = offset > 0
            if total is not None:
                self.check_room(total)
            if not offset:
                self._write_note(url, response.headers)
            digest = self._digest() if offset else hashlib.sha256()
            received = self._receive(response, digest, offset, total)
        whole = self.size if total is None else total
        if whole is not None and received < whole:
            raise Interrupted(f"the connection broke after {received} of {whole} bytes")
        return digest.hexdigest()

    def _resumable(self, url: str) -> tuple[int, str | None]:
        """How many bytes of the partial file can be kept, and the validator for the server to compare."""
        if self.part.is_symlink():
            self.discard()
        received = self.received()
        if not received:
            return 0, None
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            validator = note["validator"] if note["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            validator = None
        if (validator is None and not self.has_sha256) or (self.size is not None and received > self.size):
            self.discard()
            return 0, None
        return received, validator

    def _open(self, url: str, offset: int, validator: str | None) -> Any:
        headers = {"User-Agent": f"codebrush/{__version__}", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the opener knows only http and https
            return _opener().open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                    if total and int(total[1]) == offset and self.size in (None, offset):
                        return None
                    self.discard()
                    raise Interrupted("cannot resume") from error
                kind = Interrupted if error.code >= 500 or error.code in RETRIED else Refused
                raise kind(f"HTTP {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(_reason(error)) from error
        except ValueError as error:  # a redirect to something that is not an address
            raise Refused(_reason(error)) from error

    def _read_head(self, response: Any, offset: int, may_be_html: bool) -> tuple[int, int | None]:
        """At which byte the body of the response starts, and the size of the whole file if the server gives it."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(f"sends it with the encoding {response.headers['Content-Encoding']}")
        if (
            response.headers.get_content_type() == "text/html"
            and "Content-Type" in response.headers
            and not may_be_html
        ):
            raise Refused("sends a web page")
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != offset:
                self.discard()
                raise Interrupted("sends another range")
            total = int(span[3]) if span[3] != "*" else int(span[2]) + 1
        else:
            offset = 0
        if self.size is not None and total not in (None, self.size):
            raise Refused(f"has {total} bytes, not {self.size}")
        return offset, total

    def _receive(self, response: Any, digest: Any, received: int, total: int | None) -> int:
        """Append the body of the response to the partial file; returns the size that it then has."""
        shown = total or self.size or 0
        try:
            with self.part.open("ab" if received else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if shown and received > shown:
                        raise Refused(f"sends more than {shown} bytes")
                    if self.progress is not None:
                        self.progress(received, shown or received)
        except OSError as error:
            raise PackError(f"{self.part} cannot be written: {error.strerror or error}") from error
        return received

    def _digest(self) -> Any:
        with self.part.open("rb") as file:
            return hashlib.file_digest(file, "sha256")

    def _write_note(self, url: str, headers: Any) -> None:
        tag = headers.get("ETag", "")
        validator = tag if tag.startswith('"') else headers.get("Last-Modified")  # If-Range only allows strong tags
        try:
            self.note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        except OSError as error:
            raise PackError(f"{self.note} cannot be written: {error.strerror or error}") from error


def _read(response: Any) -> bytes:
    """The bytes that have arrived so far; if the connection breaks, those of earlier calls are kept."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(_reason(error)) from error


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no response in time"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())[:100]
