"""UPGRADING.md: what version 0.2 could be told can still be told, and what is renamed is read under both names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from codebrush.cli.main import app
from codebrush.generation.guided.guide_options import FORMER_NAMES
from codebrush.training.tasks.captioner import CaptionerStage

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "UPGRADING.md").read_text(encoding="utf-8")
THEN: dict[str, list[str]] = json.loads((ROOT / "tests/cli_surface_0.2.json").read_text())
NOW: dict[str, list[str]] = json.loads((ROOT / "tests/cli_surface.json").read_text())


def renamed() -> list[tuple[str, str, str]]:
    """The rows of the table of what was renamed: in 0.2, in 0.3, and what became of the old name."""
    table = PAGE.partition("### Renamed")[2].partition("###")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [(old.strip(), new.strip(), state.strip()) for old, new, state in rows[1:]]


def test_no_command_or_flag_of_the_last_version_is_gone_but_those_named() -> None:
    gone = {(command, flag) for command, flags in THEN.items() for flag in set(flags) - set(NOW.get(command, ()))}
    named = {(command, flag) for command, flag in gone if any(flag in old for old, _, _ in renamed())}
    assert gone == named


@pytest.mark.parametrize("flag", ["--judge", "--judge-weight"])
def test_renamed_flags_are_read_under_both_names(flag: str) -> None:
    ((_, new, state),) = [row for row in renamed() if re.search(rf"`generate {flag} ", row[0])]
    assert state.startswith("works")
    field = re.match(r"`--([\w-]+)", new)
    assert field is not None
    assert FORMER_NAMES[flag.removeprefix("--").replace("-", "_")] == field[1].replace("-", "_")
    command: Any = typer.main.get_command(app)
    value = "0.5" if "weight" in flag else "emoji"
    old, present = (
        command.commands["generate"].make_context("generate", ["a", each, value]).params
        for each in (flag, f"--{field[1]}")
    )
    former = flag.removeprefix("--").replace("-", "_")
    assert old[former] == present[FORMER_NAMES[former]] is not None


def test_renamed_fields_of_recipes_are_all_named() -> None:
    fields = {(old, new) for old, new, _ in renamed() if "captioner" in old}
    written = {(f"recipe of a captioner: `{old}`", f"`{new}`") for old, new in CaptionerStage.renamed}
    assert fields == written


def test_files_that_are_gone_are_gone_and_what_is_in_their_place_exists() -> None:
    ((old, new, _),) = [row for row in renamed() if row[2] == "gone"]
    assert not (ROOT / old.strip("`")).exists()
    assert (ROOT / new.strip("`")).is_file()
