"""What the documents tell people to type can be typed: commands parse, names exist, and blocks run or say why not.

A block that is not run has a comment before it, `<!-- not run: WHY -->`. Those that are run are a campaign of minutes
(`make test-long`); that every command of every block parses is checked always.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import typer

from codebrush import Codebrush
from codebrush.cli.main import app
from codebrush.data.synthetic.shapes import scene

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "UPGRADING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```(sh|bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\([^)]+\)")
SEPARATORS = ("&&", "||", "|", ";")


@dataclass(frozen=True)
class Block:
    """A block of a document: where it begins, its language and text, and why it is not run (empty: it is)."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(3)), found[2], found[3], found[1] or "")
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [page for page in PAGES if any(not block.reason for block in blocks_of(page))]


def commands_of(text: str) -> list[list[str]]:
    """The words behind each `codebrush` of a block of shell, up to the end of its call."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
                continue
            if "codebrush" in words:
                found.append(words[words.index("codebrush") + 1 :])
            words = []
    return found


def parse(words: Sequence[str]) -> None:
    """Read words as the command line does, without running anything; what is wrong raises an error of typer's."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def test_there_are_blocks_of_each_kind() -> None:
    assert len(BLOCKS) > 60
    assert {block.language for block in BLOCKS} == {"sh", "python"}
    assert {page.name for page in RUN} >= {"README.md", "first-picture.md"}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=lambda block: block.place)
def test_each_command_parses(block: Block) -> None:
    for words in commands_of(block.text):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"codebrush {shlex.join(words)}: {getattr(error, 'message', error)}")


def test_commands_are_found_and_wrong_ones_refused() -> None:
    text = 'cd a && codebrush generate "a | b" \\\n  --n 2 | cat  # codebrush nothing\nKEY=x codebrush packs list'
    assert commands_of(text) == [["generate", "a | b", "--n", "2"], ["packs", "list"]]
    parse(["packs", "show", "emoji"])
    for wrong in (["generate", "a", "--colour", "red"], ["generate", "a", "--n", "many"], ["paint", "a"], ["ask", "a"]):
        with pytest.raises((typer.BadParameter.__mro__[2], KeyError)):
            parse(wrong)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python"], ids=lambda block: block.place
)
def test_each_program_names_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("codebrush"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "brush":
            assert hasattr(Codebrush, node.attr), node.attr


def test_links_are_named_by_what_they_lead_to() -> None:
    named = [(page.name, name) for page in PAGES if page.parent != ROOT for name in LINK.findall(page.read_text())]
    assert len(named) > 100
    assert [found for found in named if re.fullmatch(r"[\w/.-]+\.md|decisions/\d+", found[1])] == []


def test_reasons_name_tests_that_exist() -> None:
    named = {path for block in BLOCKS for path in re.findall(r"tests/[\w/.]+\w", block.reason)}
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert [block.place for block in BLOCKS if block.reason and len(block.reason) < 15] == []


def test_each_message_of_troubleshooting_is_said_somewhere() -> None:
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]
    said = " ".join(" ".join(path.read_text(encoding="utf-8") for path in files).split())
    said = re.sub(r'" f?"|\\" \\"', "", said)  # a message may go on in the next line
    quoted = re.findall(r"^\*\*`(.+?)`", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    parts = [part.strip(" ():") for message in quoted for part in message.split("...")]
    assert [part for part in parts if len(part) > 5 and part not in said] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the documents speak of."""
    for index, name in enumerate(("cat.png", "photo.png", "photo.jpg", "icon.png", "apple.png", "scene.png")):
        scene(0, index, 96).image.convert("RGB").save(tmp_path / name)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        scene(1, index, 64).image.save(tmp_path / "photos" / f"{index}.png")
    rows = [{"image": {"bytes": (tmp_path / "cat.png").read_bytes()}, "breed": "tabby", "label": "a cat"}] * 6
    rows += [{"image": {"bytes": (tmp_path / "icon.png").read_bytes()}, "breed": "collie", "label": "a dog"}] * 6
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pets.parquet")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_run(page: Path, folder: Path) -> None:
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks_of(page):
        if block.reason:
            continue
        if block.language == "python":
            call = [sys.executable, "-c", block.text]
        else:
            call = ["bash", "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(
            call, cwd=folder, capture_output=True, text=True, timeout=1800, env={**os.environ, "PATH": commands}
        )
        assert done.returncode == 0, f"{block.place}: {done.stderr}"
