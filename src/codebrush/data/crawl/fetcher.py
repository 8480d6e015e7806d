"""Fetches a picture from an http or https URL; whatever goes wrong is one `FetchError` with a reason.

Servers are not trusted to answer, to end, to send what they announce, or to redirect to public addresses only. What
sites say to crawlers is obeyed: robots.txt, X-Robots-Tag and TDM-Reservation.
"""

import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from codebrush.data.crawl.addresses import is_private_host
from codebrush.data.crawl.connections import Handler, PrivateAddressError
from codebrush.data.crawl.options import FetchLimits
from codebrush.data.crawl.robots import MAX_BYTES, Robots
from codebrush.version import __version__

AGENT = "codebrush"
CHUNK = 1 << 16
MAX_REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
RETRY_STATUSES = frozenset((408, 425, 429))  # besides 5xx: those where a retry may help
PICTURE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream", "application/binary")
NO_AI = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
WITH_VALUE = frozenset(
    ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
)  # "directive: value"
PRIVATE = "private address"  # the reason that --allow-local removes
MAX_DELAY = 60.0  # seconds between requests; sites that ask for more are skipped
MAX_SITES = 10_000  # whose robots.txt are kept in memory


class FetchError(Exception):
    """A picture could not be fetched: `reason` is for counting, `detail` for people, `again` says if a retry may help.

    `wait` is the least number of seconds before that retry; infinite if it is of no use in this run.
    """

    def __init__(self, reason: str, detail: str = "", again: bool = False, wait: float = 0.0) -> None:
        super().__init__(detail or reason)
        self.reason, self.detail, self.again, self.wait = reason, detail, again, wait


class Fetcher:
    """Fetches pictures; threads may share one. `contact`, sent along with each request, is whom sites can write to."""

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
        """The body at `url`, after redirects.

        Raises:
            FetchError: for anything that goes wrong.
        """
        return self._get(url, self.limits.max_bytes, time.monotonic() + self.limits.deadline)

    def delay(self, url: str) -> float:
        """The seconds between requests that the URL's site asks for in its robots.txt; 0 if that was not read yet."""
        with self._lock:
            site = self._sites.get(site_of(url))
        return site.robots.delay if site is not None and site.robots is not None else 0.0

    def _get(self, url: str, max_bytes: int, deadline: float, for_robots: bool = False) -> bytes:
        seen = set()
        while True:
            parts = checked_url(url)
            url = urlunsplit(parts)
            if url in seen or len(seen) > MAX_REDIRECTS:
                raise FetchError("redirects", f"a circle, or more than {MAX_REDIRECTS} redirects")
            seen.add(url)
            if not for_robots:
                self._ask_robots(parts)
            with self._open(url, deadline) as response:
                if not for_robots:
                    _check_permission(response.headers)
                if response.status in REDIRECT_STATUSES:
                    url = _joined(url, response.headers.get("Location", ""))
                    continue
                if not for_robots:
                    _check_type(response.headers)
                return _body(response, max_bytes, deadline, cut=for_robots)

    def _open(self, url: str, deadline: float) -> Any:
        """The response, with status 200 or of a redirect; any other status raises FetchError."""
        if time.monotonic() >= deadline:
            raise FetchError("too slow", again=True)
        request = urllib.request.Request(url, headers=self.headers)  # noqa: S310 - checked_url lets http and https pass
        try:
            response = self._opener(request, deadline).open(request, timeout=self.limits.timeout)
        except urllib.error.HTTPError as error:
            if error.code in REDIRECT_STATUSES:
                return error
            with error:
                again = error.code >= 500 or error.code in RETRY_STATUSES
                wait = _seconds_until(error.headers.get("Retry-After", ""))
                raise FetchError(f"http {error.code}", again=again, wait=wait) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _fetch_error(error, deadline) from error
        if response.status != 200:
            response.close()
            raise FetchError(f"http {response.status}")
        return response

    def _opener(self, request: urllib.request.Request, until: float) -> urllib.request.OpenerDirector:
        """Opens http and https only and follows no redirect: each target is checked like a URL of the list.

        With a proxy in the environment only the proxy's address is seen here, and the proxy resolves the names.
        """
        opener, local = urllib.request.OpenerDirector(), self.limits.allow_local
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
            while len(self._sites) > MAX_SITES:
                self._sites.popitem(last=False)
        with site.lock:  # the first picture of a site reads it, the others wait
            if site.robots is None:
                site.robots = self._read_robots(name)
        if not site.robots.allows(parts.path + (f"?{parts.query}" if parts.query else "")):
            if site.robots.reachable:
                raise FetchError("robots.txt", "robots.txt disallows it")
            raise FetchError("robots.txt unreachable", again=True, wait=float("inf"))
        if site.robots.delay > MAX_DELAY:
            raise FetchError("crawl delay", f"robots.txt asks for {site.robots.delay:g} seconds between two requests")

    def _read_robots(self, site: str) -> Robots:
        """A site without a robots.txt allows everything, one that fails to send it allows nothing (RFC 9309, 2.3.1)."""
        try:
            deadline = time.monotonic() + self.limits.timeout
            text = self._get(f"{site}/robots.txt", MAX_BYTES, deadline, for_robots=True)
        except FetchError as error:
            if error.reason in (PRIVATE, "no such host"):  # true of the whole site, and quickly found again
                raise
            missing = error.reason.startswith("http 4") and not error.again
            return Robots() if missing or error.reason == "redirects" else Robots.unreachable()
        return Robots.parse(text.decode("utf-8", errors="replace"), AGENT)


class _Site:
    """The robots.txt of one site, read once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.robots: Robots | None = None


def site_of(url: str) -> str:
    """Scheme, host and port of a URL, in lower case; "" if the URL is not valid."""
    try:
        parts = checked_url(url)
    except FetchError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"


def checked_url(url: str) -> SplitResult:
    """The parts of a URL, in ASCII and without its fragment.

    Raises:
        FetchError: if it is not an http or https URL, has no host, or has a user name.
    """
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
        raise FetchError("bad URL", "it has no host, or a user name")
    place = (f"[{name}]" if ":" in name else name.lower()) + (f":{port}" if port else "")
    return SplitResult(parts.scheme, place, path, query, "")


def _joined(url: str, place: str) -> str:
    try:
        return urljoin(url, place)
    except ValueError as error:
        raise FetchError("bad URL", f"redirects to {place[:200]}") from error


def _check_permission(headers: Any) -> None:
    """Raises FetchError if the headers forbid the use for training."""
    for value in headers.get_all("X-Robots-Tag", []):
        if found := sorted(_directives(value) & NO_AI):
            raise FetchError("no-AI header", f"X-Robots-Tag: {', '.join(found)}")
    if headers.get("TDM-Reservation", "").strip() == "1":
        raise FetchError("no-AI header", "TDM-Reservation: 1")


def _check_type(headers: Any) -> None:
    """Raises FetchError if the content type is not that of a picture, before the body is read."""
    kind = headers.get_content_type() if "Content-Type" in headers else PICTURE_TYPES[1]
    if not kind.startswith(PICTURE_TYPES):
        raise FetchError("content type", f"it is {kind}")


def _seconds_until(moment: str) -> float:
    """The seconds that a Retry-After header asks for, as a number or a date; 0 for anything else."""
    if moment.isdecimal():
        return float(moment)
    try:
        return max(parsedate_to_datetime(moment).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _directives(value: str) -> set[str]:
    """The directives of one X-Robots-Tag header for all crawlers or for this one, without their values."""
    found, ours = set(), True
    for part in value.lower().split(","):
        name, colon, rest = (text.strip() for text in part.partition(":"))
        if colon and name not in WITH_VALUE and " " not in name:  # names the crawler of the following ones
            ours = name in (AGENT, "*")
            name = rest.partition(":")[0].strip()
        if ours:
            found.add(name)
    return found


def _body(response: Any, max_bytes: int, deadline: float, cut: bool = False) -> bytes:
    """The body of a response; with `cut`, of one that is too large the beginning."""
    length = response.headers.get("Content-Length", "")
    expected = int(length[:20]) if length.isdecimal() else None  # int() refuses thousands of digits
    if expected is not None and expected > max_bytes and not cut:
        raise FetchError("too large", f"{expected} bytes")
    received = bytearray()
    try:
        while chunk := response.read1(CHUNK):
            received += chunk
            if len(received) > max_bytes:
                if cut:
                    return bytes(received[:max_bytes])
                raise FetchError("too large", f"over {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise FetchError("too slow", f"{len(received)} bytes in time", again=True)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _fetch_error(error, deadline) from error
    if expected is not None and len(received) < expected:
        raise FetchError("cut off", f"{len(received)} of {expected} bytes", again=True)
    return bytes(received)


def _fetch_error(error: Exception, deadline: float) -> FetchError:
    """The FetchError for an exception of the connection."""
    cause = getattr(error, "reason", error)
    text = " ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split())[:200]
    if isinstance(cause, PrivateAddressError):
        return FetchError(PRIVATE, f"{cause}; --allow-local allows it")
    if time.monotonic() >= deadline:
        return FetchError("too slow", again=True)
    if isinstance(cause, TimeoutError):
        return FetchError("time-out", again=True)
    if isinstance(cause, socket.gaierror):
        # A name that does not exist will not exist soon; a name server that did not answer may answer next time.
        wait = 0.0 if cause.errno == socket.EAI_AGAIN else float("inf")
        return FetchError("no such host", text, again=True, wait=wait)
    if isinstance(cause, http.client.IncompleteRead):
        return FetchError("cut off", text, again=True)
    return FetchError("connection", text, again=True)
