"""docs/determinism.md names a test for each promise, and those tests exist; what replays warn of is on the page."""

import re
from pathlib import Path

from codebrush.generation.origin import NOT_PROMISED, versions
from test_security_page import NAMED, known_tests

PAGE = (Path(__file__).resolve().parents[1] / "docs/determinism.md").read_text(encoding="utf-8")
PROMISED, _, OTHERS = PAGE.partition("## Not promised")


def rows(part: str) -> list[str]:
    return [line for line in part.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| |"))]


def test_each_promise_names_tests_that_exist() -> None:
    found = rows(PROMISED)
    assert len(found) > 15
    for line in found:
        named = NAMED.findall(line)
        assert named, f"no test holds: {line}"
        assert [f"{path}::{name}" for path, name in named if name not in known_tests(path)] == []


def test_whatever_a_replay_compares_is_on_the_page_in_the_words_of_the_warning() -> None:
    for name in (*versions(), "device"):
        words = NOT_PROMISED.get(name, f"versions of {name}")
        (line,) = [each for each in rows(OTHERS) if f"**{name}**" in each]
        assert re.search(rf": over {words}\b", line)
