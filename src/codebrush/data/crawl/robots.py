"""A site's robots.txt in; whether a path may be fetched, and how slowly, out.

Follows RFC 9309 (Robots Exclusion Protocol): the longest rule that matches counts, `*` and `$` are wildcards, and a
rule that allows wins over an equally long one that does not. The standard library's parser (of Python 3.11) takes the
first rule and knows no wildcards, so that it would fetch what `Disallow: /*.jpg$` forbids.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

MOST_BYTES = 512_000  # of a robots.txt that are read; RFC 9309, section 2.5, asks for at least 500 KiB


@dataclass(frozen=True)
class Robots:
    """What one crawler may fetch. `rules` are (path, allowed); `delay` is in seconds between requests."""

    rules: tuple[tuple[str, bool], ...] = ()
    delay: float = 0.0
    reachable: bool = True

    @classmethod
    def parse(cls, text: str, agent: str) -> "Robots":
        """The rules for the crawler `agent` ("codebrush"): those that name it, else those for *."""
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
        """For a site that fails to say what it allows: nothing (RFC 9309, section 2.3.1.4)."""
        return cls((("/", False),), reachable=False)

    def allows(self, path: str) -> bool:
        """Whether `path`, with its query, may be fetched."""
        path = _same_escapes(path or "/")
        found = [(len(rule), allowed) for rule, allowed in self.rules if _matches(rule, path)]
        return max(found, default=(0, True))[1]


def _groups(lines: Iterable[str]) -> Iterable[tuple[set[str], list[tuple[str, str]]]]:
    """Each group of a file: the agents it is for, in lower case, and its rules."""
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
    """Whether the beginning of `path` fits a rule.

    Each piece between stars is put as early as it can be, which needs no going back: no rule, however odd, takes long.
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
    """A path with one spelling for each character, so that %7e, %7E and ~ are equal; an escaped slash stays one."""
    parts = (quote(unquote_to_bytes(part), safe="/*$?=&;:@!'()+,~%") for part in re.split("%2[fF]", path))
    return "%2F".join(parts)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value < float("inf") else 0.0
