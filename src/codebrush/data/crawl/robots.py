"""Reads robots.txt: whether a path may be fetched, and how slowly.

Follows RFC 9309 (Robots Exclusion Protocol): the longest matching rule counts, `*` and `$` are wildcards, and Allow
wins over an equally long Disallow. The parser of the standard library (Python 3.11) takes the first rule and knows no
wildcards: it would fetch what `Disallow: /*.jpg$` forbids.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

MAX_BYTES = 512_000  # the part of a robots.txt that is read; RFC 9309, section 2.5, asks for at least 500 KiB


@dataclass(frozen=True)
class Robots:
    """What one crawler may fetch: `rules` of (path, allowed), and the `delay` between requests in seconds."""

    rules: tuple[tuple[str, bool], ...] = ()
    delay: float = 0.0
    reachable: bool = True

    @classmethod
    def parse(cls, text: str, agent: str) -> "Robots":
        """The rules for the crawler `agent` ("codebrush"): those of the groups that name it, otherwise those for *."""
        groups = list(_groups(text.splitlines()))
        own = [lines for agents, lines in groups if agent.lower() in agents]
        if not own:
            own = [lines for agents, lines in groups if "*" in agents]
        rules, delay = [], 0.0
        for key, value in (line for lines in own for line in lines):
            if key == "crawl-delay":
                delay = max(delay, _seconds(value))
            elif value:  # an empty Disallow forbids nothing
                rules.append((_same_escapes(value), key == "allow"))
        return cls(tuple(rules), delay)

    @classmethod
    def unreachable(cls) -> "Robots":
        """The rules of a site whose robots.txt cannot be fetched: nothing is allowed (RFC 9309, section 2.3.1.4)."""
        return cls((("/", False),), reachable=False)

    def allows(self, path: str) -> bool:
        """Whether `path` (with its query) may be fetched."""
        path = _same_escapes(path or "/")
        found = [(len(rule), allowed) for rule, allowed in self.rules if _matches(rule, path)]
        return max(found, default=(0, True))[1]


def _groups(lines: Iterable[str]) -> Iterable[tuple[set[str], list[tuple[str, str]]]]:
    """Each group of the file: its user agents in lower case, and its rules."""
    agents: set[str] = set()
    rules: list[tuple[str, str]] = []
    for line in lines:
        key, colon, value = line.split("#", 1)[0].partition(":")
        key, value = key.strip().lower().lstrip("\ufeff"), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            if rules:
                yield agents, rules
                agents, rules = set(), []
            agents.add(re.split(r"[/\s]", value.lower(), maxsplit=1)[0])
        elif key in ("allow", "disallow", "crawl-delay"):
            rules.append((key, value))
    yield agents, rules


def _matches(rule: str, path: str) -> bool:
    """Whether a rule matches the beginning of `path`.

    Each piece between stars is matched as early as possible. That needs no backtracking, so no odd rule takes long.
    """
    first, *pieces = rule.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    place, last = len(first), None
    if rule.endswith("$"):
        if not pieces:
            return path == first
        last = pieces.pop()
    for piece in pieces:
        place = path.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return last is None or (path.endswith(last) and len(path) - len(last) >= place)


def _same_escapes(path: str) -> str:
    """A path with each character escaped the same way: %7e, %7E and ~ become equal. An escaped slash stays escaped."""
    parts = (quote(unquote_to_bytes(part), safe="/*$?=&;:@!'()+,~%") for part in re.split("%2[fF]", path))
    return "%2F".join(parts)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value < float("inf") else 0.0
