"""The script that makes the built-in pack: each step is given what earlier ones made, in a command that is taken."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from codebrush.cli.main import app
from codebrush.training.recipes import read_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "emoji"
SCRIPTS = (
    *("add_start", "answer_confidence", "assemble", "card", "change_clip", "compositions", "decoys"),
    *("fit_temperature", "join", "large_drawings", "more_icons", "painter_table", "score_levels", "style_classifier"),
)
# what a script needs beyond the extra for development
UNUSUAL = {"compositions": "inflect", "more_icons": "inflect"}


class Taken(Exception):
    """The arguments were taken."""


@pytest.fixture
def make(imported: Callable[[str], Any]) -> Any:
    return imported("make")


def steps_of(make: Any, folder: Path, **changed: Any) -> list[Any]:
    given = {"emoji": folder / "emoji.parquet", "more": [folder / "more.parquet"], "answers": folder / "answers"}
    given["icon_packages"] = folder / "packages"
    given |= {"photographs": folder / "photographs", "earlier": folder / "earlier", "runs": folder / "runs"}
    return make.Plan(argparse.Namespace(**{**given, "threads": 1, "rehearse": False, **changed})).steps()


@pytest.mark.parametrize("rehearse", [False, True])
def test_each_step_is_given_what_earlier_steps_made(make: Any, tmp_path: Path, rehearse: bool) -> None:
    steps = steps_of(make, tmp_path, rehearse=rehearse)
    made = list[Path]()
    for step in steps:
        assert step.made not in made
        out = step.command[step.command.index("--out") + 1] if "--out" in step.command else None
        for word in map(Path, step.command):
            if tmp_path / "runs" in word.parents and str(word) not in (out, str(step.recipe and step.recipe[0])):
                assert any(word in (each, *each.parents) for each in made), f"{step.name}: {word} is not there yet"
        made.append(step.made)
    assert len({step.name for step in steps}) == len(steps)
    assert made[-1] == tmp_path / "runs" / "pack" / "README.md"


@pytest.mark.parametrize("there", [True, False])
def test_every_run_of_the_pack_is_a_step(make: Any, tmp_path: Path, there: bool) -> None:
    packages = tmp_path / "packages" if there else None
    steps = {step.name: step for step in steps_of(make, tmp_path, icon_packages=packages, earlier=None)}
    assemble, command = importlib.import_module("assemble"), steps["assemble"].command
    upscaler = command[command.index("--upscaler") + 1] if "--upscaler" in command else assemble.MEMBERS["upscaler"]
    assert upscaler == ("upscaler-2" if there else "upscaler")
    assert {*assemble.runs_with(upscaler)} <= {*steps}


def test_the_recipes_are_read_and_the_stages_commands_are_taken(make: Any, tmp_path: Path) -> None:
    train = typer.main.get_command(app).commands["train"]  # pyright: ignore[reportAttributeAccessIssue]
    stages = [step for step in steps_of(make, tmp_path) if step.recipe is not None]
    for step in stages:
        file, text = step.recipe
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        words = list(step.command[step.command.index("train") + 1 :])
        train.make_context("train", words.copy())  # it takes the words out of its list
        assert read_recipe(file, words[words.index("--source") + 1], words[0]).plan.stage == words[0]
    assert len(stages) > 20


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_take_their_commands(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    if script in UNUSUAL and importlib.util.find_spec(UNUSUAL[script]) is None:
        pytest.skip(f"needs {UNUSUAL[script]}")
    parse = argparse.ArgumentParser.parse_args

    def take(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", take)
    for step in scripts_of(make, tmp_path)[script]:
        monkeypatch.setattr(sys, "argv", list(step.command))
        with pytest.raises(Taken):
            importlib.import_module(script).main()


def test_these_are_the_scripts_of_all_steps(make: Any, tmp_path: Path) -> None:
    assert sorted(scripts_of(make, tmp_path)) == sorted(SCRIPTS)


def scripts_of(make: Any, folder: Path) -> dict[str, list[Any]]:
    """The steps that are commands of scripts, by the script."""
    found: dict[str, list[Any]] = {}
    for step in steps_of(make, folder):
        if step.recipe is None:
            found.setdefault(Path(step.command[0]).stem, []).append(step)
    return found


def test_what_is_there_is_left_out_and_a_stopped_stage_goes_on(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "stopped").mkdir()
    program = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]))"
    new, stopped, failed, recipe = (tmp_path / name for name in ("new", "stopped/model", "never", "made/third.yaml"))
    steps = [
        make.Step("first", tmp_path / "there", ("-c", "raise SystemExit(1)")),
        make.Step("second", new, ("-c", program, str(new), "words")),
        make.Step(
            "third",
            stopped,
            ("-c", program, str(stopped)),
            (tmp_path / "made" / "third.yaml", "stage: clip"),
            stopped.parent,
        ),
        make.Step("fourth", failed, ("-c", "raise SystemExit(3)")),
    ]
    make.run(steps, until="third")
    assert new.read_text() == "words"
    assert stopped.read_text() == "--resume"
    assert recipe.read_text() == "stage: clip"
    assert capsys.readouterr().out.startswith("1 of 4: first is there")
    with pytest.raises(SystemExit, match="4 of 4: fourth ended with 3: the same command goes on from here"):
        make.run(steps, until=None)


def test_a_pack_that_is_made_anew_gets_again_what_was_put_into_it(make: Any, tmp_path: Path) -> None:
    pack, program = tmp_path / "pack" / "pack.json", "import sys, pathlib; pathlib.Path(sys.argv[1]).touch()"
    pack.parent.mkdir()
    steps = [
        make.Step("assemble", pack, ("-c", program, str(pack))),
        make.Step("fit", tmp_path / "fit.done", ("-c", program, str(tmp_path / "fitted"), str(pack.parent))),
        make.Step("other", tmp_path / "other.done", ("-c", "raise SystemExit(1)")),
    ]
    for mark in (steps[1].made, steps[2].made):
        mark.touch()
    make.run(steps, until=None)
    assert (tmp_path / "fitted").exists()
    assert steps[1].made.exists()
