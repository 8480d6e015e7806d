"""Budgets, the choice of sizes, plans on disk, and folders that a stage cannot train into."""

import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from codebrush.cli.main import run as command
from codebrush.errors import TrainingError, UsageError
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.packs.budget import (
    ENDING_SECONDS,
    ENDING_SHARE,
    Claim,
    parse_budget,
    seconds_left,
    spell_seconds,
    split,
    stage_seconds,
)
from codebrush.training.packs.plan import GUARDED, PLANNED, choose, loop_of
from codebrush.training.packs.request import PackRequest
from codebrush.training.packs.timing import measure_step
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import MODEL_FOLDER, read_plan, write_plan
from codebrush.training.run_stage import make_network, make_task, run_figures, run_stage
from codebrush.training.stage import Materials, ModelSize, StagePlan
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe
from packs import micro_tokenizer, micro_vqgan

TINY = CLIPRecipe(
    image_size=16, patch_size=8, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2, embed_dim=8,
    token_table=False,
)  # fmt: skip
QUIET = LoopConfig(steps=2, batch_size=4, preview_every=0)


@pytest.fixture
def materials(shapes: Path, tmp_path: Path) -> Materials:
    data = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path / "cache")
    return Materials(data, {"clip": micro_tokenizer()})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("60m", 3600), ("2h", 7200), ("1.5d", 129600), (" 5M ", 300), ("1e2s", 100)],
)
def test_budgets_are_read(text: str, seconds: float):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["0m", "soon", "", "-5m", "nan", "infh", "1e999m", "m", "5 weeks", "5mm", "1:30"])
def test_wrong_budgets_are_refused_with_the_remedy(text: str):
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert f"--budget '{text}'" in str(caught.value)
    assert "like 90s, 60m, 2h or 1d" in str(caught.value)


@pytest.mark.parametrize("text", ["12", " 0.5", "1e3"])
def test_a_budget_without_a_unit_is_refused_with_what_to_write(text: str):
    with pytest.raises(UsageError, match=f"--budget {float(text):g} has no unit: write {float(text):g}m for minutes, "):
        parse_budget(text)


@pytest.mark.parametrize("seconds", [1.0, 89.5, 121.0, 3599.0, 10_801.0, 90_000.0])
def test_seconds_are_spelt_as_a_budget_that_is_no_shorter(seconds: float):
    assert seconds <= parse_budget(spell_seconds(seconds)) <= 1.5 * seconds + 60


CANDIDATES = [
    ModelSize(name, TINY, 10, examples) for name, examples in (("small", 100), ("medium", 400), ("large", 2000))
]


def timer(seconds: dict[str, float]) -> tuple[Callable[[ModelSize], float], list[str]]:
    asked: list[str] = []

    def time_steps(size: ModelSize) -> float:
        asked.append(size.name)
        return seconds[size.name]

    return time_steps, asked


@pytest.mark.parametrize(
    ("budget", "expected", "tried"),
    [
        (50.0, "small", ["small"]),  # 50 steps see 500 pictures: no time to spare for 400 that cost more
        (150.0, "small", ["small", "medium"]),
        (200.0, "medium", ["small", "medium"]),
        (2000.0, "large", ["small", "medium", "large"]),
    ],
)
def test_more_time_makes_larger_networks(budget: float, expected: str, tried: list[str]):
    time_steps, asked = timer({"small": 2.5, "medium": 4.5, "large": 8.0})
    size, steps, per_step = choose(CANDIDATES, budget, time_steps)
    assert (size.name, asked) == (expected, tried)
    planned = int(PLANNED * budget / per_step)
    assert planned - 1 <= steps <= planned  # the choice itself takes a moment


def test_a_budget_that_is_too_small_makes_no_step():
    time_steps, _ = timer({"small": 100.0})
    assert choose(CANDIDATES, 1.0, time_steps)[:2] == (CANDIDATES[0], 0)


@pytest.mark.parametrize("image_size", [16, 24, 32, 48, 64, 96, 128, 256])
@pytest.mark.parametrize("stage", ["clip", "vqgan", "transformer", "upscaler"])
def test_candidates_grow_and_fit_their_pictures(stage: str, image_size: int):
    found = STAGES[stage].sizes(image_size)
    assert [size.examples for size in found] == sorted({size.examples for size in found})
    for size in found:
        if isinstance(size.recipe, VQGANRecipe):
            factor = 2 ** (len(size.recipe.channel_multipliers) - 1)
            assert image_size % factor == 0
            assert image_size // factor >= 8
        if isinstance(size.recipe, CLIPRecipe):
            assert image_size % (32 if size.recipe.image == "resnet" else size.recipe.patch_size) == 0


def test_measuring_a_step_leaves_nothing_behind(materials: Materials, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    assert 0 < measure_step(StagePlan("clip", TINY, QUIET), materials, tmp_path / "cache") < 60
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "plan",
    [
        StagePlan("clip", TINY, LoopConfig(steps=10, batch_size=4, warmup=100), {"size": "small", "seconds": 1.25}),
        StagePlan("clip", CLIPRecipe(image="resnet", blocks=(1, 2, 3, 4), loss="sigmoid"), QUIET),
        StagePlan("vqgan", VQGANRecipe(channel_multipliers=(1, 2), learning_rate=1 / 3), QUIET),
        StagePlan("transformer", TransformerRecipe(dropout=0.1), LoopConfig(steps=7, batch_size=3, threads=5)),
    ],
)
def test_a_plan_is_read_as_it_was_written(plan: StagePlan, tmp_path: Path):
    write_plan(plan, tmp_path / "run")
    assert read_plan(tmp_path / "run") == plan
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["stage.json"]


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "stage.json").write_text('{"stage": ')
    with pytest.raises(TrainingError, match=r"stage\.json cannot be read"):
        read_plan(tmp_path)


def test_a_stage_is_not_run_over_another(materials: Materials, tmp_path: Path):
    plan = StagePlan("clip", TINY, QUIET)
    first = run_stage(plan, materials, tmp_path / "run")
    with pytest.raises(TrainingError, match="already holds a training run: add --resume"):
        run_stage(plan, materials, tmp_path / "run")
    longer = dataclasses.replace(plan, loop=dataclasses.replace(QUIET, steps=3))
    again = run_stage(longer, materials, tmp_path / "run", resume=True)  # the plan that it began with holds
    assert (tmp_path / "run" / MODEL_FOLDER / "tokenizer.json").is_file()
    for ours, theirs in zip(again.state_dict().values(), first.state_dict().values(), strict=True):
        assert ours.equal(theirs)


def test_a_plan_that_cannot_be_carried_out_leaves_the_folder_free(materials: Materials, tmp_path: Path):
    wrong = StagePlan("clip", dataclasses.replace(TINY, width=15), QUIET)
    with pytest.raises(TrainingError, match="the clip cannot be built: width 15 does not divide into 2 heads"):
        run_stage(wrong, materials, tmp_path / "run")
    run_stage(StagePlan("clip", TINY, QUIET), materials, tmp_path / "run")


@pytest.mark.parametrize(
    "wrong",
    [{"accelerator": "abacus"}, *({"strategy": name} for name in ("warp", "deepspeed", "dp"))],
    ids=str,
)
def test_devices_that_cannot_be_had_are_one_line_and_leave_the_folder_free(wrong, materials: Materials, tmp_path: Path):
    plan = StagePlan("clip", TINY, dataclasses.replace(QUIET, **{"accelerator": "cpu", **wrong}))
    with pytest.raises(
        TrainingError, match=f"{next(iter(wrong))} '{next(iter(wrong.values()))}'.* are not available"
    ) as caught:
        run_stage(plan, materials, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_sharded_networks_are_not_compiled(materials: Materials, tmp_path: Path):
    plan = StagePlan("clip", TINY, dataclasses.replace(QUIET, strategy="fsdp", compile=True))
    with pytest.raises(TrainingError, match=r"loop\.compile does not work with loop\.strategy fsdp: set it to false"):
        run_stage(plan, materials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_that_the_plan_does_not_ask_for_are_refused(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="one of 2 processes, but the plan is for 1: set"):
        run_stage(StagePlan("clip", TINY, QUIET), materials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("recipe", "missing"), [(VQGANRecipe(image_size=16), "clip"), (TransformerRecipe(), "clip")])
def test_a_stage_says_which_earlier_one_it_needs(recipe, missing: str, materials: Materials, tmp_path: Path):
    stage = "vqgan" if isinstance(recipe, VQGANRecipe) else "transformer"
    with pytest.raises(TrainingError, match=f"needs the {missing} of an earlier one"):
        run_stage(StagePlan(stage, recipe, QUIET), materials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_task_adds_to_a_given_network_is_drawn_from_the_plan_s_seed(materials: Materials):
    start, plan = micro_vqgan(), StagePlan("vqgan", VQGANRecipe(), QUIET)
    drawn = []
    for _ in range(2):
        assert make_network(plan, materials, start) is start
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_folder_that_cannot_be_made_is_one_line(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("in the way")
    recipe = tmp_path / "clip.yaml"
    recipe.write_text("stage: clip\nrecipe: {image_size: 16, patch_size: 8}\nloop: {steps: 1, batch_size: 2}\n")
    out = tmp_path / "file" / "run"
    assert command(["train", "clip", str(recipe), "--source", str(shapes), "--out", str(out)]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("codebrush: ")
    assert str(tmp_path / "file") in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = tmp_path / "clip.yaml"
    recipe.write_text("stage: clip\nrecipe: {image_size: 16, patch_size: 8}\nloop: {steps: 1, batch_size: 2}\n")
    (tmp_path / "locked").mkdir(mode=0o555)
    out = tmp_path / "locked" / "run"
    assert command(["train", "clip", str(recipe), "--source", str(shapes), "--out", str(out)]) == 1
    assert "locked" in capsys.readouterr().err


def train_on_a_full_disk(shapes: str, folder: str, room: int) -> None:
    """Train with files limited to `room` bytes, which fails as a full disk does, and write down how it ended."""
    place = Path(folder)
    data = load_captioned(SourceConfig(shapes).open(), 16, place / "cache")
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        run_stage(StagePlan("clip", TINY, QUIET), Materials(data, {"clip": micro_tokenizer()}), place / "run")
        message = "trained"
    except TrainingError as error:
        message = str(error)
    (place / "message").write_text(message)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    shapes: Path, tmp_path: Path, processes: ForkServerContext, datasets_cache: Path
):
    process = processes.Process(target=train_on_a_full_disk, args=(str(shapes), str(tmp_path), 40_000))
    process.start()
    process.join(300)
    message = (tmp_path / "message").read_text()
    assert message.startswith(str(tmp_path / "run"))
    assert "cannot be written" in message
    assert "\n" not in message
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".part") or path.name == CHECKPOINT] == []
    assert json.loads((tmp_path / "run" / "stage.json").read_text())["stage"] == "clip"


@pytest.mark.parametrize(("image_size", "block"), [(32, 1), (64, 1), (128, 2), (256, 2)])
def test_many_codes_are_written_in_blocks(image_size: int, block: int):
    assert {size.recipe.block for size in STAGES["transformer"].sizes(image_size)} == {block}


def test_a_budget_is_split_by_shares_and_what_a_stage_saves_is_passed_on():
    budget = 100 + ENDING_SECONDS
    assert seconds_left(budget, 0) == pytest.approx(100)
    assert seconds_left(10_000, 0) == pytest.approx(10_000 * (1 - ENDING_SHARE))
    assert stage_seconds(100, [Claim(1), Claim(3)]) == 25
    assert stage_seconds(seconds_left(budget, 10), [Claim(3)]) == pytest.approx(90)  # the first took 10 s, not 25
    assert seconds_left(budget, 2 * budget) == 0


def test_the_stage_that_is_served_first_gets_what_it_needs_before_the_others():
    assert stage_seconds(100, [Claim(1), Claim(1, needs=40), Claim(2)]) == 20  # of the 60 that are left to share
    assert stage_seconds(80, [Claim(1, needs=40), Claim(2)]) == 40
    assert stage_seconds(40, [Claim(2)]) == 40
    assert stage_seconds(100, [Claim(1), Claim(3, needs=10)]) == 25  # its share is more than it needs
    assert stage_seconds(100, [Claim(1), Claim(1, needs=500)]) == pytest.approx(40)  # the others are left some
    assert stage_seconds(100, [Claim(1, needs=10)]) == 100  # nothing comes after it


def test_what_stages_that_are_left_out_would_have_had_goes_to_the_first_and_then_to_the_others():
    first, painter, late = Claim(1, needs=500), Claim(2), Claim(2)
    assert split(100, [first, painter, late]) == pytest.approx([60, 20, 20])
    gone = late._replace(left_out=True)
    assert split(100, [first, painter, gone]) == pytest.approx([80, 20, 0])
    assert split(100, [first._replace(needs=65), painter, gone]) == pytest.approx([65, 35, 0])  # it needs no more
    assert split(100, [painter._replace(left_out=True), first, gone]) == pytest.approx([0, 100, 0])
    assert split(100, [gone, Claim(1), Claim(3)]) == pytest.approx([0, 25, 75])


def test_timing_ends_early_where_steps_are_slow_beside_the_budget(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = StagePlan("clip", TINY, QUIET)
    steps: list[int] = []
    monkeypatch.setattr(Loop, "_train_step", lambda loop, batch: steps.append(1))
    for most, expected in ((60.0, 5), (0.0, 1)):
        steps.clear()
        task = make_task(plan, materials, make_network(plan, materials))
        assert Loop(task, plan.loop, tmp_path).time_steps(2, 3, most) > 0
        assert len(steps) == expected


def test_a_run_ends_when_its_time_is_over_and_is_saved(materials: Materials, tmp_path: Path):
    plan = StagePlan("clip", TINY, dataclasses.replace(QUIET, steps=50, checkpoint_every=50, log_every=50))
    network = run_stage(plan, materials, tmp_path / "run", until=time.monotonic())
    figures = run_figures(plan, network, tmp_path / "run", 1.0)
    assert figures["steps"] == figures["metrics"]["step"] == 1
    assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["step"] == 1


@pytest.mark.parametrize(
    ("steps", "batch_size", "held_out"), [(173, 16, 64), (20_000, 64, 64), (173, 8, 0), (40, 64, 0)]
)
def test_looking_whether_a_stage_goes_wrong_takes_little_of_its_time(
    steps: int, batch_size: int, held_out: int
) -> None:
    request = PackRequest(SourceConfig("pictures"), Path("pack"))
    loop = loop_of(request, steps, batch_size, held_out, previews=False)
    forward = (2 * held_out or 32) * (steps // loop.guard_every)  # pictures that are looked at
    assert forward <= GUARDED * 3 * steps * batch_size
    assert 10 <= loop.guard_every <= max(250, steps)
