"""A training that is resumed keeps to what it was first asked for, and the command heeds every flag or refuses it."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clocks import set_monotonic
from codebrush.cli.main import run as command
from codebrush.cli.train import train
from codebrush.errors import TrainingError, UsageError
from codebrush.training.dataset import SourceConfig
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.packs.clock import Clock
from codebrush.training.packs.pack_training import train_pack
from codebrush.training.packs.places import work_folder
from codebrush.training.packs.request import PackRequest, check_same, make_request, read_request, write_request
from codebrush.training.run_folder import read_plan
from codebrush.training.stage import StagePlan
from codebrush.training.tasks.code_transformer import TransformerRecipe

PLAN = StagePlan("transformer", TransformerRecipe(width=16), LoopConfig(steps=5, batch_size=4))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "pack.work").mkdir()
    return tmp_path / "pack"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": 90.0, "image_size": 32, "tokenizer": "bpe", "seed": 5, "threads": 2, "start": Path("emoji")},
        {"keep_work": True, "start": None},
        {"source": SourceConfig("here", "train", ("a == b",), ("{x}", "{y}"), "x", "img", 7), "name": "n"},
        {"plans": {"transformer": PLAN}, "licence": "CC0-1.0"},
    ],
)
def test_a_request_is_read_as_it_was_written(changes: dict[str, Any], out: Path):
    request = replace(PackRequest(SourceConfig("pictures"), out), **changes)
    write_request(request)
    first = read_request(out)
    assert first == request
    check_same(request, request if first is None else first)
    assert [path.name for path in work_folder(out).iterdir()] == ["request.json"]


def test_a_request_that_cannot_be_read_is_named(out: Path):
    assert read_request(out) is None
    for text in ("", "{", "[]", "{}", '{"source": {"source": 3}, "plans": {}}'):
        (work_folder(out) / "request.json").write_text(text)
        with pytest.raises(
            TrainingError, match=r"request\.json cannot be read .*delete .*pack\.work to start"
        ) as caught:
            read_request(out)
        assert "\n" not in str(caught.value)


def test_what_is_not_given_again_is_taken_from_the_first_call(out: Path, tmp_path: Path):
    given = {
        "budget": 90.0,
        "image_size": 32,
        "tokenizer": "bpe",
        "seed": 5,
        "captions": ("a {label}",),
        "name": "mine",
    }
    first = make_request("pictures", out, given)
    write_request(first)
    assert make_request("pictures", out, {}, resume=True) == replace(first, resume=True)
    moved = make_request(str(tmp_path), out, {"seed": 5}, resume=True)
    check_same(moved, first)
    assert (moved.source.source, moved.image_size) == (str(tmp_path), 32)
    fresh = make_request("pictures", out, {})
    assert (fresh.budget, fresh.start, fresh.image_size) == (3600, Path("emoji"), None)
    assert make_request("pictures", out, {"start": Path("none")}).start is None


def test_a_training_that_an_earlier_version_began_goes_on_as_it_began(out: Path):
    write_request(make_request("pictures", out, {"budget": 90.0}))
    path = work_folder(out) / "request.json"
    stored = {
        name: value for name, value in json.loads(path.read_text()).items() if name not in ("format", "keep_work")
    }
    for start, image_size, expected in (
        (None, 64, 64),
        ("emoji", 64, None),
    ):  # the start's size counted, not image_size
        path.write_text(json.dumps({**stored, "start": start, "image_size": image_size}))
        first = make_request("pictures", out, {}, resume=True)
        assert (first.start, first.image_size) == (start and Path(start), expected)
        check_same(first, read_request(out))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": 64}, "--image-size is 64 but was 32 when"),
        ({"tokenizer": "wordpiece"}, "--tokenizer is wordpiece but was bpe when"),
        ({"seed": 0}, "--seed is 0 but was 5 when"),
        ({"budget": 60.0}, r"--budget is 60\.0 but was 90\.0 when"),
        ({"start": Path("none")}, "--from is None but was emoji when"),
        ({"split": "train"}, "--split is train but was None when"),
        ({"captions": ("x",)}, r"--caption is \['x'\] but was \[\] when"),
    ],
)
def test_another_value_is_refused_with_both(given: dict[str, Any], message: str, out: Path):
    write_request(make_request("pictures", out, {"budget": 90.0, "image_size": 32, "tokenizer": "bpe", "seed": 5}))
    first = read_request(out)
    assert first is not None
    with pytest.raises(UsageError, match=message) as caught:
        check_same(make_request("pictures", out, given, resume=True), first)
    assert "\n" not in str(caught.value)


def test_other_recipes_are_refused_by_the_number_that_differs(out: Path, tmp_path: Path):
    def recipes(name: str, steps: int) -> Path:
        (tmp_path / name).mkdir()
        for stage in ("clip", "vqgan", "transformer"):
            loop = {"steps": steps if stage == "vqgan" else 5, "batch_size": 4}
            (tmp_path / name / f"{stage}.yaml").write_text(yaml.safe_dump({"stage": stage, "loop": loop}))
        return tmp_path / name

    first = make_request("pictures", out, {"recipes": recipes("first", 5)})
    write_request(first)
    assert first.budget is None
    check_same(make_request("pictures", out, {"recipes": recipes("same", 5)}, resume=True), first)
    with pytest.raises(UsageError, match=r"--recipes \(vqgan\.loop\.steps\) is 7 but was 5 when"):
        check_same(make_request("pictures", out, {"recipes": recipes("other", 7)}, resume=True), first)


def test_recipes_given_again_have_no_guards_where_a_training_began_without(out: Path, tmp_path: Path):
    for stage in ("clip", "vqgan", "transformer"):
        recipe = {"stage": stage, "loop": {"steps": 5, "batch_size": 4}}
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(recipe))
    write_request(make_request("pictures", out, {"recipes": tmp_path}))
    stored = work_folder(out) / "request.json"
    values = json.loads(stored.read_text())
    for plan in values["plans"].values():
        del plan["loop"]["guard_every"], plan["loop"]["held_out"]
    stored.write_text(json.dumps(values))
    first, again = read_request(out), make_request("pictures", out, {"recipes": tmp_path}, resume=True)
    assert first is not None
    check_same(again, first)
    assert [plan.loop.guard_every for plan in again.plans.values()] == [0, 0, 0]


def test_a_training_may_go_on_with_other_devices(out: Path):
    def asked(**loop: Any) -> PackRequest:
        plan = replace(PLAN, loop=replace(PLAN.loop, **loop))
        return replace(make_request("pictures", out, {}, resume=True), budget=None, start=None, plans={"clip": plan})

    write_request(asked(devices=2, compile=True))
    first = read_request(out)
    assert first is not None
    check_same(asked(devices=1, accumulate=4, checkpoint_activations=True), first)
    assert PLAN.loop.moved_to(replace(PLAN.loop, steps=9, devices=2, accumulate=2)).parts == 4
    assert PLAN.loop.moved_to(replace(PLAN.loop, steps=9, devices=2)).steps == PLAN.loop.steps
    compiled = replace(PLAN.loop, compile=True)  # which sharded networks cannot be
    assert not compiled.moved_to(replace(PLAN.loop, strategy="fsdp")).compile
    with pytest.raises(TrainingError, match="began with 4 rows a step, which do not divide by 3, the number"):
        PLAN.loop.moved_to(replace(PLAN.loop, devices=3))


def test_stages_for_other_numbers_of_processes_are_refused_before_any_is_trained(shapes: Path, tmp_path: Path):
    for stage in ("clip", "vqgan", "transformer"):
        loop = {"steps": 5, "batch_size": 4, "devices": 2 if stage == "vqgan" else 1}
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump({"stage": stage, "loop": loop}))
    with pytest.raises(TrainingError, match=r"vqgan\.yaml asks for loop\.devices 2 .*, clip\.yaml for 1 and 1: the"):
        train_pack(make_request(str(shapes), tmp_path / "pack", {"recipes": tmp_path}))
    assert not work_folder(tmp_path / "pack").exists()


def test_a_budget_is_refused_to_several_processes(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"--budget trains in one process: start one, or give --recipes with"):
        train_pack(make_request(str(shapes), tmp_path / "pack", {}))
    assert not work_folder(tmp_path / "pack").exists()


def test_the_command_shows_the_defaults_that_hold():
    shown = inspect.signature(train).parameters
    held = PackRequest(SourceConfig("pictures"), Path("out"))
    for name in ("image_size", "tokenizer", "seed", "threads", "name", "licence", "start"):
        assert shown[name].default == getattr(held, name)


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert command(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip", "r.yaml", "--budget", "5m"], "--budget is for a whole pack, not for the stage clip"),
        (["clip", "r.yaml", "--image-size", "64"], "--image-size is for a whole pack"),
        (["vqgan", "r.yaml", "--caption", "x"], "--caption is for a whole pack"),
        (["vqgan", "r.yaml", "--seed", "0"], "--seed is for a whole pack"),
        (["vqgan", "r.yaml", "--vqgan", "x"], "--vqgan is for the stages transformer, flow and upscaler"),
        (
            ["clip", "r.yaml", "--clip", "x"],
            "--clip is for the stages vqgan, transformer, flow, prior, captioner, upscaler and",
        ),
        (["transformer", "r.yaml", "--name", "x"], "--name is for a whole pack"),
        (["pictures", "--source", "others"], "--source is for a single stage"),
        (["pictures", "--clip", "x"], "--clip is for a single stage"),
        (["pictures", "--recipes", "r", "--budget", "5m"], "--budget does nothing with --recipes"),
        (["pictures", "--recipes", "r", "--seed", "1"], "--seed does nothing with --recipes"),
        (["pictures", "--from", "p", "--tokenizer", "bpe"], "--tokenizer does nothing with --from"),
        (
            ["pictures", "--budget", "12"],
            "--budget 12 has no unit: write 12m for minutes, 12h for hours or 12s for seco",
        ),
        (["clip", "r.yaml", "--keep-work"], "--keep-work is for a whole pack"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in one_line(["train", *arguments, "--out", str(tmp_path / "out")], capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_what_differs_and_keeps_the_rest(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = {
        "clip": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "token_table": False},
        "vqgan": {"image_size": 16, "channels": 8, "channel_multipliers": [1, 2], "codebook_size": 16, "perceptual": 0},
        "transformer": {"width": 16, "layers": 1, "heads": 2},
    }
    for stage, recipe in tiny.items():
        values = {"stage": stage, "recipe": recipe, "loop": {"steps": 1, "batch_size": 4, "preview_every": 0}}
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "pack"
    start = ["train", str(shapes), "--out", str(out), "--tokenizer", "bpe", "--threads", "1"]
    assert command([*start, "--recipes", str(tmp_path), "--keep-work"]) == 0
    capsys.readouterr()
    resume = ["train", str(shapes), "--out", str(out), "--resume"]
    assert "--tokenizer is wordpiece but was bpe" in one_line([*resume, "--tokenizer", "wordpiece"], capsys)
    assert "--budget is 5.0 but was None" in one_line([*resume, "--budget", "5s"], capsys)
    assert command([*resume, "--threads", "1", "--name", "renamed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pack"] == str(out)
    assert json.loads((out / "pack.json").read_text())["name"] == "renamed"
    assert read_plan(work_folder(out) / "vqgan").loop.threads == 1


def test_a_resumed_stage_keeps_its_tokenizer(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "text_width": 16, "token_table": False}
    loop = {"steps": 2, "batch_size": 4, "preview_every": 0, "threads": 1}
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump({"stage": "clip", "recipe": recipe, "loop": loop}))
    run = ["train", "clip", str(tmp_path / "clip.yaml"), "--source", str(shapes), "--out", str(tmp_path / "run")]
    assert command([*run, "--tokenizer", "bpe"]) == 0
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "model")
    capsys.readouterr()
    assert "--tokenizer is wordpiece but was bpe" in one_line([*run, "--resume", "--tokenizer", "wordpiece"], capsys)
    assert "--threads is 2 but was 1" in one_line([*run, "--resume", "--threads", "2"], capsys)
    assert "but was None" in one_line([*run, "--resume", "--from", str(tmp_path)], capsys)
    assert command([*run, "--resume"]) == 0
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_clock_goes_on_by_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    set_monotonic(monkeypatch, lambda: now)
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({"between": 1.5, "clip": 20.0}))
    clock = Clock(path)
    now = 100.25
    assert clock.spent() == 21.75
    now = 101.0
    clock.charge("vqgan")
    now = 103.0
    clock.charge("clip")
    stored = json.loads(path.read_text())
    assert stored == {"between": 1.5, "clip": 22.0, "vqgan": 1.0}
    now = 103.5
    assert clock.spent() == 25
    Clock(path, writes=False).charge("clip")
    assert json.loads(path.read_text()) == stored
