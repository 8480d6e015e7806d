"""Fetching a picture: whatever a server does, the fetch ends soon and with a reason."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate

import pytest

from codebrush.data.crawl.fetcher import NO_AI, Fetcher, FetchError, _directives, checked_url
from codebrush.data.crawl.options import FetchLimits
from rude_server import RudeServer, rude_server

LIMITS = FetchLimits(timeout=20, deadline=40, max_bytes=2_000, allow_local=True)
HASTY = {
    "hang": {"timeout": 0.5},
    "drip": {"deadline": 0.6},
    "drip-head": {"deadline": 0.6},
}  # what each runs into


@pytest.fixture
def server() -> Iterator[RudeServer]:
    with rude_server() as running:
        yield running


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher(LIMITS, contact="mailto:me@example.org")


def refusal(fetcher: Fetcher, url: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(url)
    return caught.value


def test_a_picture_comes_as_it_is(fetcher: Fetcher, server: RudeServer, picture: Callable[..., bytes]):
    url = server.serve("/a b/ü.png?size=1", b"") and server.url("/a b/ü.png?size=1#part")
    server.serve("/a%20b/%C3%BC.png?size=1", picture())
    assert fetcher.fetch(url) == picture()
    (agent,) = server.agents
    assert agent.startswith("codebrush/")
    assert agent.endswith("(+mailto:me@example.org)")


@pytest.mark.parametrize(
    ("how", "reason", "again"),
    [
        ({"way": "hang"}, "time-out", True),
        ({"way": "drip", "content": b"x" * 500}, "too slow", True),
        ({"way": "drip-head"}, "too slow", True),
        ({"way": "reset"}, "connection", True),
        ({"content": b"x" * 2_001}, "too large", False),
        ({"content": b"x" * 2_001, "length": False}, "too large", False),
        ({"content": b"x" * 10, "length": 1_000_000_000_000}, "too large", False),
        ({"content": b"x" * 10, "length": 11}, "cut off", True),
        ({"statuses": [404]}, "http 404", False),
        ({"statuses": [500]}, "http 500", True),
        ({"statuses": [204]}, "http 204", False),
        ({"statuses": [302], "headers": [("Location", "/x")]}, "redirects", False),
        ({"statuses": [302], "headers": [("Location", "file:///etc/passwd")]}, "bad URL", False),
        ({"statuses": [302], "headers": [("Location", "http://[::1/x")]}, "bad URL", False),
        ({"statuses": [302], "headers": [("Location", "/y"), ("X-Robots-Tag", "noai")]}, "no-AI", False),
        ({"content": b"x" * 9, "length": int("9" * 4000)}, "too large", False),
        ({"content": b"<html>", "type": "text/html"}, "content type", False),
        ({"content": b"x", "type": "video/mp4"}, "content type", False),
        (
            {"headers": [("X-Robots-Tag", "noarchive"), ("X-Robots-Tag", "NoAI, max-image-preview:large")]},
            "no-AI",
            False,
        ),
        ({"headers": [("X-Robots-Tag", "codebrush: noimageai")]}, "no-AI", False),
        ({"headers": [("TDM-Reservation", "1")]}, "no-AI", False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_misbehaviour_has_a_reason(server: RudeServer, how: dict, reason: str, again: bool):
    url = server.serve("/x", **{"content": b"x", **how})
    found = refusal(Fetcher(replace(LIMITS, **HASTY.get(how.get("way", ""), {}))), url)
    assert found.reason.startswith(reason)
    assert found.again is again


def test_no_more_is_read_than_the_limit(fetcher: Fetcher, server: RudeServer):
    """An endless body is cut off at the limit, not at the deadline."""
    url = server.serve("/endless", b"x" * 10_000, length=False, way="endless")
    assert refusal(fetcher, url).reason == "too large"


@pytest.mark.parametrize("kind", ["image/webp", "application/octet-stream", None])
def test_pictures_by_any_other_name(fetcher: Fetcher, server: RudeServer, kind: str | None):
    assert fetcher.fetch(server.serve("/x", b"bytes", type=kind)) == b"bytes"


@pytest.mark.parametrize(
    "value", ["googlebot: noindex", "all", "unavailable_after: 25 Jun 2030 15:00:00 PST", "nofollow"]
)
def test_headers_for_others_are_not_for_us(fetcher: Fetcher, server: RudeServer, value: str):
    assert fetcher.fetch(server.serve("/x", b"bytes", headers=[("X-Robots-Tag", value)])) == b"bytes"


def test_directives():
    assert _directives("noai, noimageai") == {"noai", "noimageai"}
    assert _directives("Codebrush: NOAI") == {"noai"}
    assert _directives("otherbot: noai, noindex") == set()
    assert "noai" in _directives("unavailable_after: 25 Jun 2030 15:00:00 PST, noai")
    assert "noai" in _directives("unavailable_after: Wed, 03 Dec 2025 13:09:53 GMT, noai")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("max-image-preview:large, noai", {"noai"}),
        ("max-snippet:-1, max-image-preview:large, max-video-preview:-1, noai, noimageai", {"noai", "noimageai"}),
        ("Max-Snippet : 20,noai", {"noai"}),
        ("codebrush: max-snippet:-1, noai", {"noai"}),
        ("otherbot: max-snippet:-1, noai", set()),
        ("otherbot: noai, codebrush: noindex", {"noindex"}),
        ("noai, otherbot: noindex", {"noai"}),
        ("otherbot: noai, *: noimageai, thirdbot: noindex", {"noimageai"}),
    ],
)
def test_a_directive_with_a_value_is_no_crawler(value: str, found: set[str]):
    assert _directives(value) & NO_AI == found


def test_waiting_is_as_long_as_the_server_asks(fetcher: Fetcher, server: RudeServer):
    url = server.serve("/x", statuses=[429], headers=[("Retry-After", "7")])
    found = refusal(fetcher, url)
    assert (found.reason, found.again, found.wait) == ("http 429", True, 7)


def test_waiting_until_a_date(fetcher: Fetcher, server: RudeServer):
    url = server.serve("/x", statuses=[503], headers=[("Retry-After", formatdate(time.time() + 600, usegmt=True))])
    assert 500 <= refusal(fetcher, url).wait <= 600
    url = server.serve("/y", statuses=[503], headers=[("Retry-After", "some day")])
    assert refusal(fetcher, url).wait == 0


def test_a_host_that_does_not_exist(fetcher: Fetcher):
    found = refusal(fetcher, "http://no-such-host.invalid/x")
    assert (found.reason, found.again) == ("no such host", True)


def test_redirects_are_followed_and_checked(fetcher: Fetcher, server: RudeServer):
    server.serve("/robots.txt", b"User-agent: *\nDisallow: /private", type="text/plain")
    server.serve("/private/x", b"bytes")
    server.serve("/y", b"bytes")
    assert fetcher.fetch(server.serve("/a", statuses=[301], headers=[("Location", "y")])) == b"bytes"
    url = server.serve("/b", statuses=[301], headers=[("Location", "/private/x")])
    assert refusal(fetcher, url).reason == "robots.txt"
    assert not server.asked["/private/x"]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_site_without_robots_allows_all(fetcher: Fetcher, server: RudeServer, status: int):
    server.serve("/robots.txt", statuses=[status])
    assert fetcher.fetch(server.serve("/x", b"bytes")) == b"bytes"


@pytest.mark.parametrize("how", [{"statuses": [503] * 9}, {"way": "hang"}, {"way": "reset"}])
def test_a_site_without_a_readable_robots_allows_nothing(server: RudeServer, how: dict):
    fetcher = Fetcher(replace(LIMITS, **HASTY.get(how.get("way", ""), {})))
    server.serve("/robots.txt", **how)
    url = server.serve("/x", b"bytes")
    found = refusal(fetcher, url)
    assert (found.reason, found.again) == ("robots.txt unreachable", True)
    refusal(fetcher, url)
    assert (server.asked["/robots.txt"], server.asked["/x"]) == (1, 0)  # remembered and obeyed


def test_a_site_may_ask_for_pauses(fetcher: Fetcher, server: RudeServer):
    server.serve("/robots.txt", b"User-agent: codebrush\nCrawl-delay: 2.5", type="text/plain")
    fetcher.fetch(url := server.serve("/x", b"bytes"))
    assert fetcher.delay(url) == 2.5


def test_a_site_that_asks_for_hours_is_left_alone(fetcher: Fetcher, server: RudeServer):
    server.serve("/robots.txt", b"User-agent: *\nCrawl-delay: 86400", type="text/plain")
    assert refusal(fetcher, server.serve("/x", b"bytes")).reason == "crawl delay"


def test_a_giant_robots_is_cut(fetcher: Fetcher, server: RudeServer):
    server.serve("/robots.txt", b"User-agent: *\nDisallow: /no\n" + b"# fill\n" * 200_000, type="text/plain")
    assert fetcher.fetch(server.serve("/x", b"bytes")) == b"bytes"
    assert refusal(fetcher, server.serve("/no", b"bytes")).reason == "robots.txt"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_private_addresses_are_refused(server: RudeServer, host: str):
    server.serve("/x", b"bytes")
    fetcher = Fetcher(replace(LIMITS, allow_local=False))
    found = refusal(fetcher, f"http://{host}:{server.server_address[1]}/x")
    assert found.reason == "private address"
    assert not server.asked


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://example.org/x", "file:///etc/passwd", "http://", "http://h:99999/", "http://me:pw@h/",
     "http://[::1/", "javascript:alert(1)", "data:image/png;base64,xx", "http://" + "a" * 70 + ".org/", "http://h/\ud800"],
)  # fmt: skip
def test_bad_urls(url: str):
    with pytest.raises(FetchError) as caught:
        checked_url(url)
    assert caught.value.reason == "bad URL"


def test_urls_become_ascii():
    assert checked_url("HTTP://MÜNCHEN.example:8080/grün?q=ä b#top").geturl() == (
        "http://xn--mnchen-3ya.example:8080/gr%C3%BCn?q=%C3%A4%20b"
    )
    assert checked_url("http://example.org").geturl() == "http://example.org/"
