"""One http(s) URL in; the bytes of a picture, or one `FetchError` that says why not and whether to try again, out.

A server is trusted with nothing: not to answer, to stop, to send what it says, nor to lead only to public addresses.
What sites say about crawlers is heeded: robots.txt, X-Robots-Tag and TDM-Reservation.
"""

import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from codebrush.data.crawl.addresses import is_private_host
from codebrush.data.crawl.connections import Handler, PrivateAddressError
from codebrush.data.crawl.robots import MOST_BYTES, Robots
from codebrush.version import __version__

AGENT = "codebrush"
CHUNK = 1 << 16
REDIRECTS = 5
MOVED = (301, 302, 303, 307, 308)
LATER = frozenset((408, 425, 429))  # beside 5xx: the answers that waiting can mend
PICTURE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream", "application/binary")
NO_AI = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
VALUED = frozenset(("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"))  # "directive: value"
PRIVATE = "private address"  # a reason that --allow-local does away with
MOST_DELAY = 60.0  # seconds between requests; a site that asks for more is left alone
SITES = 10_000  # whose robots.txt are remembered


class FetchError(Exception):
    """Why there is no picture: a `reason` to count by, more in words, and whether another try may do better.

    `wait` is the least number of seconds before that try; infinite where it is not worth one in this run.
    """

    def __init__(self, reason: str, detail: str = "", again: bool = False, wait: float = 0.0) -> None:
        super().__init__(detail or reason)
        self.reason, self.detail, self.again, self.wait = reason, detail, again, wait


@dataclass(frozen=True)
class FetchLimits:
    """`silence` is the longest wait for the next byte and `deadline` that for a whole picture, in seconds."""

    silence: float = 10.0
    deadline: float = 60.0
    most_bytes: int = 20_000_000
    local: bool = False  # whether private addresses may be asked


class Fetcher:
    """Fetches pictures; many threads may share one. `contact` tells the sites whom to write to."""

    def __init__(self, limits: FetchLimits, contact: str = "") -> None:
        self.limits = limits
        self.headers = {
            "User-Agent": f"{AGENT}/{__version__}" + (f" (+{contact})" if contact else ""),
            "Accept": "image/*",
        }
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._lock = threading.Lock()
        self._context = ssl.create_default_context()  # reading the certificates takes a while

    def fetch(self, url: str) -> bytes:
        """The body at `url`, after redirects. Raises FetchError."""
        return self._get(url, self.limits.most_bytes, time.monotonic() + self.limits.deadline)

    def delay(self, url: str) -> float:
        """The seconds between requests that the URL's site asked for, as far as its robots.txt has been read."""
        with self._lock:
            site = self._sites.get(site_of(url))
        return site.robots.delay if site is not None and site.robots is not None else 0.0

    def _get(self, url: str, most_bytes: int, deadline: float, for_robots: bool = False) -> bytes:
        seen = set()
        while True:
            parts = checked_url(url)
            url = urlunsplit(parts)
            if url in seen or len(seen) > REDIRECTS:
                raise FetchError("redirects", f"sent in a circle or on more than {REDIRECTS} times")
            seen.add(url)
            if not for_robots:
                self._ask_robots(parts)
            with self._open(url, deadline) as response:
                if not for_robots:
                    _check_permission(response.headers)
                if response.status in MOVED:
                    url = _joined(url, response.headers.get("Location", ""))
                    continue
                if not for_robots:
                    _check_type(response.headers)
                return _body(response, most_bytes, deadline, cut=for_robots)

    def _open(self, url: str, deadline: float) -> Any:
        """An answer with status 200 or a redirect; every other one is a FetchError."""
        if time.monotonic() >= deadline:
            raise FetchError("too slow", again=True)
        request = urllib.request.Request(url, headers=self.headers)
        try:
            response = self._opener(request, deadline).open(request, timeout=self.limits.silence)
        except urllib.error.HTTPError as error:
            if error.code in MOVED:
                return error
            with error:
                again = error.code >= 500 or error.code in LATER
                wait = _seconds_until(error.headers.get("Retry-After", ""))
                raise FetchError(f"http {error.code}", again=again, wait=wait) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refusal(error, deadline) from error
        if response.status != 200:
            response.close()
            raise FetchError(f"http {response.status}")
        return response

    def _opener(self, request: urllib.request.Request, until: float) -> urllib.request.OpenerDirector:
        """Speaks http and https alone and follows no redirect, since each is to be judged like a URL of the list.

        Where the environment names a proxy, the address that is seen is the proxy's, and where names lead its business.
        """
        opener, local = urllib.request.OpenerDirector(), self.limits.local
        host = urlsplit(request.full_url).hostname or ""
        proxied = request.type in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
        if proxied:
            if not local and is_private_host(host):
                raise PrivateAddressError(f"{host} is at a private address")
            opener.add_handler(urllib.request.ProxyHandler())
        opener.add_handler(Handler(local or bool(proxied), until, self._context))
        opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
        opener.add_handler(urllib.request.HTTPErrorProcessor())
        return opener

    def _ask_robots(self, parts: SplitResult) -> None:
        name = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            site = self._sites.setdefault(name, _Site())
            self._sites.move_to_end(name)
            while len(self._sites) > SITES:
                self._sites.popitem(last=False)
        with site.lock:  # of several pictures of one site the first one reads it
            if site.robots is None:
                site.robots = self._read_robots(name)
        if not site.robots.allows(parts.path + (f"?{parts.query}" if parts.query else "")):
            if site.robots.reachable:
                raise FetchError("robots.txt", "robots.txt disallows it")
            raise FetchError("robots.txt unreachable", again=True, wait=float("inf"))
        if site.robots.delay > MOST_DELAY:
            raise FetchError("crawl delay", f"robots.txt asks for {site.robots.delay:g} seconds between two requests")

    def _read_robots(self, site: str) -> Robots:
        """What a site without the file allows is everything, and what one that fails to send it allows is nothing."""
        try:
            deadline = time.monotonic() + self.limits.silence
            text = self._get(f"{site}/robots.txt", MOST_BYTES, deadline, for_robots=True)
        except FetchError as refusal:
            if refusal.reason in (PRIVATE, "no such host"):  # of the whole site, and soon known again
                raise
            missing = refusal.reason.startswith("http 4") and not refusal.again
            return Robots() if missing or refusal.reason == "redirects" else Robots.unreachable()
        return Robots.parse(text.decode("utf-8", errors="replace"), AGENT)


class _Site:
    """What is known of one site."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.robots: Robots | None = None


def site_of(url: str) -> str:
    """Scheme, host and port of a URL, in lower case; "" where it is none."""
    try:
        parts = checked_url(url)
    except FetchError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"


def checked_url(url: str) -> SplitResult:
    """A URL taken apart, in ASCII and without its fragment. Raises FetchError where it is not of http or https."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
        name = host if ":" in host else host.encode("idna").decode()
        path, query = (quote(part, safe="/%:=&?~+!$,;'@()*[]|") for part in (parts.path or "/", parts.query))
    except (ValueError, UnicodeError) as error:
        raise FetchError("bad URL", str(error)) from error
    if parts.scheme not in ("http", "https"):
        raise FetchError("bad URL", f"the scheme {parts.scheme or '(none)'} is not http or https")
    if not name or parts.username is not None:
        raise FetchError("bad URL", "it names no host, or a user")
    place = (f"[{name}]" if ":" in name else name.lower()) + (f":{port}" if port else "")
    return SplitResult(parts.scheme, place, path, query, "")


def _joined(url: str, place: str) -> str:
    try:
        return urljoin(url, place)
    except ValueError as error:
        raise FetchError("bad URL", f"sent on to {place[:200]}") from error


def _check_permission(headers: Any) -> None:
    """Refuse what a site does not give for training."""
    for value in headers.get_all("X-Robots-Tag", []):
        if found := sorted(_directives(value) & NO_AI):
            raise FetchError("no-AI header", f"X-Robots-Tag: {', '.join(found)}")
    if headers.get("TDM-Reservation", "").strip() == "1":
        raise FetchError("no-AI header", "TDM-Reservation: 1")


def _check_type(headers: Any) -> None:
    """Refuse what says that it is no picture, before its body is read."""
    kind = headers.get_content_type() if "Content-Type" in headers else PICTURE_TYPES[1]
    if not kind.startswith(PICTURE_TYPES):
        raise FetchError("content type", f"it is {kind}")


def _seconds_until(moment: str) -> float:
    """The seconds that a Retry-After asks for, given as their number or as a date; 0 for anything else."""
    if moment.isdecimal():
        return float(moment)
    try:
        return max(parsedate_to_datetime(moment).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _directives(value: str) -> set[str]:
    """The directives of one X-Robots-Tag that are for every crawler or for this one, without their values."""
    found, ours = set(), True
    for part in value.lower().split(","):
        name, colon, rest = (text.strip() for text in part.partition(":"))
        if colon and name not in VALUED and " " not in name:  # a crawler's name, for what follows up to the next one
            ours = name in (AGENT, "*")
            name = rest.partition(":")[0].strip()
        if ours:
            found.add(name)
    return found


def _body(response: Any, most_bytes: int, deadline: float, cut: bool = False) -> bytes:
    """The body of an answer; `cut` takes the beginning of one that is too large."""
    length = response.headers.get("Content-Length", "")
    expected = int(length[:20]) if length.isdecimal() else None  # thousands of digits are an error of their own
    if expected is not None and expected > most_bytes and not cut:
        raise FetchError("too large", f"{expected} bytes")
    received = bytearray()
    try:
        while chunk := response.read1(CHUNK):
            received += chunk
            if len(received) > most_bytes:
                if cut:
                    return bytes(received[:most_bytes])
                raise FetchError("too large", f"over {most_bytes} bytes")
            if time.monotonic() > deadline:
                raise FetchError("too slow", f"{len(received)} bytes in time", again=True)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _refusal(error, deadline) from error
    if expected is not None and len(received) < expected:
        raise FetchError("cut off", f"{len(received)} of {expected} bytes", again=True)
    return bytes(received)


def _refusal(error: Exception, deadline: float) -> FetchError:
    """What went wrong on the way, by its kind."""
    cause = getattr(error, "reason", error)
    text = " ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split())[:200]
    if isinstance(cause, PrivateAddressError):
        return FetchError(PRIVATE, f"{cause}; --allow-local asks it all the same")
    if time.monotonic() >= deadline:
        return FetchError("too slow", again=True)
    if isinstance(cause, TimeoutError):
        return FetchError("time-out", again=True)
    if isinstance(cause, socket.gaierror):
        # That a name does not exist stays so for a while; a name server that does not answer may do so next time.
        wait = 0.0 if cause.errno == socket.EAI_AGAIN else float("inf")
        return FetchError("no such host", text, again=True, wait=wait)
    if isinstance(cause, http.client.IncompleteRead):
        return FetchError("cut off", text, again=True)
    return FetchError("connection", text, again=True)
