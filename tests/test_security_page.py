"""SECURITY.md names a test for each line of its threat model, and those tests exist."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
THREATS = ("picture", "checkpoint", "pack", "catalogue entry", "web page", "install", "API")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


@cache
def known_tests(path: str) -> frozenset[str]:
    """The tests of a file as pytest names them: function, or Class::function."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name for each in members if isinstance(each, ast.FunctionDef)}
    return frozenset(found)


def test_each_line_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and line.count("|") == 4]
    lines = [line for line in rows if not line.startswith(("|---", "| what is tried"))]
    assert len(lines) > 25
    for line in lines:
        named = NAMED.findall(line)
        assert named, f"no test holds: {line}"
        assert [f"{path}::{name}" for path, name in named if name not in known_tests(path)] == []


def test_each_kind_of_stranger_has_a_section() -> None:
    titles = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    assert len(titles) == len(THREATS)
    for threat, title in zip(THREATS, titles, strict=True):
        assert threat in title


def test_the_linters_security_rules_are_on_and_each_exception_has_its_reason() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert [rule for rule in lint["ignore"] if rule.startswith("S") and rule[1:].isdigit()] == ["S101", "S603"]
    assert [rule for rule in lint["per-file-ignores"].get("src/**", []) if rule.startswith("S")] == []
    exceptions = [
        (path.name, line)
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"# noqa: S\d{3}\b", line)
    ]
    assert exceptions
    assert [each for each in exceptions if not re.search(r"# noqa: S\d{3} - \w+", each[1])] == []


def test_each_find_of_the_campaigns_names_the_test_that_holds_it() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    table = page.partition("| found | held by |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) >= 10
    for line in table:
        named = NAMED.findall(line)
        assert named, f"no test holds: {line}"
        assert [f"{path}::{name}" for path, name in named if name not in known_tests(path)] == []
