"""Reading robots.txt by RFC 9309."""

import time
from urllib.robotparser import RobotFileParser

import pytest

from codebrush.data.crawl.robots import Robots


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("", "/x", True),
        ("Disallow:", "/x", True),
        ("Disallow: /", "/x", False),
        ("Disallow: /a", "/abc", False),
        ("Disallow: /a", "/b/a", True),
        ("Disallow: /*.jpg$", "/a/b.jpg", False),
        ("Disallow: /*.jpg$", "/a/b.jpg?size=2", True),
        ("Disallow: /*.jpg", "/a/b.jpg?size=2", False),
        ("Disallow: /*/raw/*.png$", "/me/raw/x/y.png", False),
        ("Disallow: /*ab*ab$", "/xab", True),
        ("Disallow: /x$", "/x", False),
        ("Disallow: /x$", "/xy", True),
        ("Disallow: /*?", "/x?y=1", False),
        ("Disallow: /b\nAllow: /b/ok", "/b/ok/1", True),
        ("Allow: /b/ok\nDisallow: /b", "/b/no", False),
        ("Allow: /page\nDisallow: /page", "/page", True),
        ("Disallow: /gr%C3%BCn", "/gr%c3%bcn/x", False),
        ("Disallow: /%7Eme", "/~me/x", False),
        ("Disallow: /a%2Fb", "/a/b", True),
        ("DISALLOW : /a # ours", "/a", False),
    ],
)
def test_rules(rules: str, path: str, allowed: bool):
    assert Robots.parse(f"User-agent: *\n{rules}\n", "codebrush").allows(path) is allowed


def test_rules_for_us_replace_those_for_all():
    text = "User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-Agent: Codebrush/1.0\nDisallow: /own\n"
    robots = Robots.parse(text, "codebrush")
    assert robots.allows("/x")
    assert not robots.allows("/own")
    assert not Robots.parse(text, "someone").allows("/x")


def test_groups_of_one_agent_are_joined():
    text = "User-agent: codebrush\nDisallow: /a\nUser-agent: x\nDisallow: /\nUser-agent: codebrush\nDisallow: /b\n"
    robots = Robots.parse(text, "codebrush")
    assert [robots.allows(path) for path in ("/a", "/b", "/c")] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "delay"), [("3", 3.0), ("0.5", 0.5), ("soon", 0.0), ("-1", 0.0), ("inf", 0.0), ("nan", 0.0)]
)
def test_crawl_delay(text: str, delay: float):
    assert Robots.parse(f"User-agent: *\nCrawl-delay: {text}", "codebrush").delay == delay


@pytest.mark.parametrize(
    "text", ["", "\x00\xff", "<html>User-agent", "Disallow: /", "User-agent: *", "\ufeffUser-agent: *\nDisallow:/n"]
)
def test_odd_files_are_read(text: str):
    assert Robots.parse(text, "codebrush").allows("/x")


def test_it_agrees_with_the_standard_library_where_that_knows_the_rules():
    text = (
        "User-agent: *\nDisallow: /a/\nDisallow: /b.html\nAllow: /c\n\nUser-agent: bot\nDisallow: /d\nCrawl-delay: 4\n"
    )
    reference = RobotFileParser()
    reference.parse(text.splitlines())
    for agent in ("bot", "codebrush"):
        robots = Robots.parse(text, agent)
        for path in ("/", "/a", "/a/x", "/b.html", "/b.htm", "/c", "/d", "/d/e"):
            assert robots.allows(path) == reference.can_fetch(agent, f"http://site{path}"), (agent, path)
    assert Robots.parse(text, "bot").delay == reference.crawl_delay("bot")


def test_no_rule_takes_long():
    robots = Robots.parse("User-agent: *\nDisallow: /" + "*a" * 900 + "b", "codebrush")
    start = time.thread_time()
    assert robots.allows("/" + "a" * 5_000)
    assert time.thread_time() - start < 2  # two stars too many for a backtracking matcher take years
