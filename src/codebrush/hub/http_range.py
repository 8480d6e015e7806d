"""An http(s) URL and a partial file in; the rest of it appended, or one exception that says whether to try again, out.

A partial file `x.part` is resumed with a Range request. Beside it `x.part.json` says where it comes from and its
validator (ETag or Last-Modified), so that If-Range makes the server start over where its file has changed.
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
RETRIED = frozenset((408, 425, 429))  # beside 5xx: the answers that waiting can mend


class Refused(Exception):
    """This mirror cannot give the file; another one may."""


class Cut(Exception):
    """The connection or the server failed; the same mirror may do better in a while."""


class WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses alone, and never from https to plain http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise Refused(f"sends on to {scheme}:")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Speaks http and https alone: the usual one would also open local files and ftp."""
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
    """One file on its way. `size` is in bytes; `known` says that a sha256 will prove the whole in the end, so that
    bytes may be mended from several mirrors; `check_room` is told how many bytes it will have once that is known.
    """

    def __init__(
        self,
        part: Path,
        *,
        size: int | None,
        known: bool,
        timeout: float,
        progress: Progress | None,
        check_room: Callable[[int], None],
    ) -> None:
        self.part, self.note = part, part.with_name(part.name + ".json")
        self.size, self.known, self.timeout = size, known, timeout
        self.progress, self.check_room = progress, check_room
        self.resumed = False

    def held(self) -> int:
        """Bytes of the partial file."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def discard(self) -> None:
        """Remove the partial file and the note beside it."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def fetch(self, url: str, may_be_html: bool) -> str:
        """Complete the partial file from `url` and return the sha256 (hex) of the whole. Raises Refused or Cut."""
        offset, validator = self._resumable(url)
        self.resumed = offset > 0
        if offset and offset == self.size:
            return self._digest().hexdigest()
        response = self._open(url, offset, validator)
        if response is None:  # the server says that nothing is left to send
            return self._digest().hexdigest()
        with response:
            offset, total = self._read_head(response, offset, may_be_html)
            self.resumed = offset > 0
            if total is not None:
                self.check_room(total)
            if not offset:
                self._write_note(url, response.headers)
            digest = self._digest() if offset else hashlib.sha256()
            held = self._receive(response, digest, offset, total)
        whole = self.size if total is None else total
        if whole is not None and held < whole:
            raise Cut(f"the connection broke after {held} of {whole} bytes")
        return digest.hexdigest()

    def _resumable(self, url: str) -> tuple[int, str | None]:
        """How many bytes can be kept, and the validator that the server is to compare."""
        if self.part.is_symlink():
            self.discard()
        held = self.held()
        if not held:
            return 0, None
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            validator = note["validator"] if note["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            validator = None
        if (validator is None and not self.known) or (self.size is not None and held > self.size):
            self.discard()
            return 0, None
        return held, validator

    def _open(self, url: str, offset: int, validator: str | None) -> Any:
        headers = {"User-Agent": f"codebrush/{__version__}", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        try:
            return _opener().open(urllib.request.Request(url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                    if total and int(total[1]) == offset and self.size in (None, offset):
                        return None
                    self.discard()
                    raise Cut("cannot resume") from error
                kind = Cut if error.code >= 500 or error.code in RETRIED else Refused
                raise kind(f"HTTP {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Cut(_reason(error)) from error
        except ValueError as error:  # of a redirect that leads nowhere
            raise Refused(_reason(error)) from error

    def _read_head(self, response: Any, offset: int, may_be_html: bool) -> tuple[int, int | None]:
        """Where the body of the answer belongs, and how many bytes the file has."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(f"sends it in the encoding {response.headers['Content-Encoding']}")
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
                raise Cut("answers with another range")
            total = int(span[3]) if span[3] != "*" else int(span[2]) + 1
        else:
            offset = 0
        if self.size is not None and total not in (None, self.size):
            raise Refused(f"has {total} bytes, not {self.size}")
        return offset, total

    def _receive(self, response: Any, digest: Any, held: int, total: int | None) -> int:
        """Append the body to the partial file; bytes that it then has."""
        shown = total or self.size or 0
        try:
            with self.part.open("ab" if held else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    digest.update(chunk)
                    held += len(chunk)
                    if shown and held > shown:
                        raise Refused(f"sends more than {shown} bytes")
                    if self.progress is not None:
                        self.progress(held, shown or held)
        except OSError as error:
            raise PackError(f"{self.part} cannot be written: {error.strerror or error}") from error
        return held

    def _digest(self) -> Any:
        with self.part.open("rb") as file:
            return hashlib.file_digest(file, "sha256")

    def _write_note(self, url: str, headers: Any) -> None:
        tag = headers.get("ETag", "")
        validator = tag if tag.startswith('"') else headers.get("Last-Modified")  # If-Range takes strong tags alone
        try:
            self.note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        except OSError as error:
            raise PackError(f"{self.note} cannot be written: {error.strerror or error}") from error


def _read(response: Any) -> bytes:
    """What has arrived: a broken connection must not take with it what came before."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Cut(_reason(error)) from error


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())[:100]
