"""UPGRADING.md: what version 0.2 could be told can still be told, and what is renamed is read under both names."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import getmembers, signature
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import codebrush
from codebrush import Codebrush
from codebrush.cli.main import app
from codebrush.errors import PackError
from codebrush.generation.guided.guide_options import FORMER_NAMES
from codebrush.training.tasks.captioner import CaptionerStage

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "UPGRADING.md").read_text(encoding="utf-8")
THEN: dict[str, list[str]] = json.loads((ROOT / "tests/cli_surface_0.2.json").read_text())
PYTHON_THEN: dict[str, list[str]] = json.loads((ROOT / "tests/python_surface_0.2.json").read_text())
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


def accepted(function: Callable[..., Any]) -> set[str]:
    """The names by which a function's arguments may be given, former ones among them; "**" if any are."""
    options = signature(function).parameters.values()
    former = getattr(function, "former_names", {})
    return {*(option.name for option in options), *former, *("**" for each in options if each.kind == each.VAR_KEYWORD)}


def test_every_name_of_the_last_version_is_still_there() -> None:
    assert set(PYTHON_THEN["all"]) <= set(codebrush.__all__)
    functions = {f"method {name}": member for name, member in getmembers(Codebrush) if not name.startswith("_")}
    functions |= {f"function {name}": getattr(codebrush, name) for name in codebrush.__all__}
    for name, options in PYTHON_THEN.items():
        if name.startswith(("method ", "function ")):
            taken = accepted(functions[name])
            assert {each for each in options if each not in taken and "**" not in taken} == set(), name


def test_every_field_of_recipes_and_configs_of_the_last_version_is_read() -> None:
    tasks = [f"training.tasks.{path.stem}" for path in (ROOT / "src/codebrush/training/tasks").glob("[a-z]*.py")]
    for module in ("data.curation.options", "data.crawl.options", "evaluation.report", "training.recipes", *tasks):
        importlib.import_module(f"codebrush.{module}")
    classes = {
        each.__name__: each
        for module in list(sys.modules.values())
        if module is not None and module.__name__.startswith("codebrush.")
        for each in vars(module).values()
        if isinstance(each, type) and is_dataclass(each)
    }
    former = {"CaptionerRecipe": {old for old, _ in CaptionerStage.renamed}, "GuideOptions": set(FORMER_NAMES)}
    former["StageRecipe"] = {"source"}  # of what a recipe file is read into; the file has `source` as before
    seen = 0
    for name, options in PYTHON_THEN.items():
        kind, _, called = name.partition(" ")
        if kind == "dataclass":
            known = {each.metadata.get("stored_as") or each.name for each in fields(classes[called])}
            assert set(options) - known <= former.get(called, set()), called
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("task", ["score", "ask"])
def test_former_names_of_arguments_are_read_with_a_warning(task: str, micro_pack: Path) -> None:
    assert any(f"{task}(image=...)" in old for old, _, _ in renamed())
    brush, picture = Codebrush.from_pretrained(micro_pack, device="cpu"), Image.new("RGB", (32, 32))
    if task == "score":
        with pytest.warns(UserWarning, match="image is called images now"):
            assert brush.score(image=picture, text="a cat") == brush.score(picture, "a cat")  # pyright: ignore
        with pytest.raises(TypeError, match="twice"):
            brush.score(image=picture, images=picture, text="a cat")  # pyright: ignore
    else:  # the pack has no captioner, which is said of both
        with pytest.warns(UserWarning, match="image is called images now"), pytest.raises(PackError, match="captioner"):
            brush.ask(image=picture, question="what?")  # pyright: ignore


def test_the_version_is_that_of_the_changelog() -> None:
    head, _, state = re.findall(r"^## \[(\S+)\]( - )(.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert codebrush.__version__ == (f"{head}.dev0" if state == "unreleased" else head)
    assert state == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", state)
    assert f"From 0.{int(head.split('.')[1]) - 1} to 0.{head.split('.')[1]}" in PAGE
