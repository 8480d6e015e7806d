"""What a pack begins from, what a budget is enough for, and what is said about both."""

import json
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from micro_plans import BUDGET, PLANS, request

from codebrush.cli.main import run as command
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import CodebrushError, TrainingError, UsageError
from codebrush.pack.pack import open_pack
from codebrush.previews import draw_preview
from codebrush.training.engine.loop import Loop
from codebrush.training.packs import member_training, pack_training
from codebrush.training.packs.budget import parse_budget
from codebrush.training.packs.pack_training import train_pack
from codebrush.training.packs.start import Start
from codebrush.training.registry import STAGES
from codebrush.training.stage import ModelSize


def test_the_work_is_deleted_with_the_pack_written_and_nothing_else_is_left(shapes: Path, tmp_path: Path):
    report = train_pack(request(shapes, tmp_path / "micro", keep_work=False), lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]
    assert "work" not in report


def test_a_pack_names_what_it_began_from_and_the_licence_of_that(pack, shapes: Path, tmp_path: Path):
    train_pack(request(shapes, tmp_path / "second", start=pack[0], licence="CC BY 4.0"), lambda text: None)
    info = open_pack(tmp_path / "second").info
    assert info["licence"] == "CC BY 4.0; begun from micro: CC0-1.0"
    began = info["provenance"]["start"]
    assert (began["pack"], began["sha256"], began["kept"]) == ("micro", open_pack(pack[0]).hash, [])
    assert [info["provenance"]["stages"][stage]["from"] for stage in PLANS] == ["micro"] * 3
    assert "start" not in open_pack(pack[0]).info["provenance"]


@pytest.mark.parametrize(("side", "told"), [(24, False), (32, True)])
def test_small_pictures_that_are_enlarged_are_told(side: int, told: bool, tmp_path: Path):
    write_shapes(tmp_path / "shapes", 12, size=24, objects=1)
    plans = {"clip": PLANS["clip"], "transformer": PLANS["transformer"]}
    plans["vqgan"] = replace(PLANS["vqgan"], recipe=replace(PLANS["vqgan"].recipe, image_size=side))
    said: list[str] = []
    train_pack(request(tmp_path / "shapes", tmp_path / "micro", plans=plans), said.append)
    lines = [line for line in said if "are enlarged: what is drawn is no sharper than they are" in line]
    assert bool(lines) == told
    assert all(line.startswith("100% of the pictures are smaller than 32 pixels (such as 24)") for line in lines)


def test_a_budget_too_short_for_the_vqgan_is_refused_with_one_that_is_not_and_leaves_nothing(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    given = request(shapes, tmp_path / "second", plans={}, budget=9.0, start=pack[0], image_size=None)
    with pytest.raises(
        UsageError,
        match=r"--budget 9s is too short: \d s of it are left for training, and its VQGAN, from micro, needs \d+s",
    ) as caught:
        train_pack(given, lambda text: None)
    assert list(tmp_path.iterdir()) == []
    assert "--image-size" not in str(caught.value)
    monkeypatch.setattr(member_training, "SMALL_SIDE", 8)
    with pytest.raises(UsageError, match=r"or more, or smaller pictures with --image-size 8$"):
        train_pack(given, lambda text: None)
    enough = parse_budget(str(caught.value).split("give --budget ")[1].split(" ")[0])
    report = train_pack(replace(given, budget=enough), lambda text: None)
    assert report["stages"]["vqgan"]["steps"] > 1


def test_a_budget_in_which_nothing_would_be_trained_is_refused(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(member_training, "KNOWN", 0.1)  # the VQGAN is good enough
    monkeypatch.setattr(member_training, "KNOWN_SHARE", 0.0)
    monkeypatch.setattr(member_training.Pace, "seen", lambda self, seconds: 0)  # and the others have no time
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
    with pytest.raises(
        UsageError, match=r"is too short: \d+ s of it are left for training, and its .*, from micro, needs"
    ):
        train_pack(given, lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_a_painter_of_the_start_goes_before_its_clip_where_time_is_short(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(STAGES["clip"]), "share", 2.0)
    monkeypatch.setattr(member_training, "KNOWN", 0.1)  # the VQGAN is good enough
    monkeypatch.setattr(member_training, "KNOWN_SHARE", 0.0)
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
    report = train_pack(given, lambda text: None, draw_preview)
    assert report["left_out"]["clip"] == "the code transformer that reads it needs its time"
    assert "transformer" in report["stages"]
    assert report["draws"]
    assert report["kept"] == {"clip": "micro", "vqgan": "micro"}


def test_stages_without_time_are_left_out_by_name_or_taken_from_the_start(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(STAGES["clip"]), "share", 1e-4)
    monkeypatch.setattr(type(STAGES["transformer"]), "share", 1e-4)
    said: list[str] = []
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
    report = train_pack(given, said.append, draw_preview)
    assert {"clip", "transformer"} <= report["left_out"].keys()
    planned = {line.split()[0]: line.split(maxsplit=1)[1] for line in said if line.startswith("  ")}
    assert planned["clip"].startswith(
        "micro's is taken as it is: in 0 s it would see 0 pictures, and 100 are the least"
    )
    assert planned["transformer"].startswith("left out: in 0 s")
    made = open_pack(tmp_path / "second")
    assert not made.has("transformer")  # that of the start draws codes of another VQGAN
    assert report["sheets"] == [str(tmp_path / "second" / "reconstructions.png")]
    assert not report["draws"]
    assert "draws by --method guide only" in report["verdict"][-1]
    assert made.info["provenance"]["start"]["kept"] == ["clip"]
    assert report["kept"] == {"clip": "micro"}
    ours, theirs = made.clip.state_dict(), open_pack(pack[0]).clip.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_time_of_stages_that_are_left_out_is_used_by_those_that_are_trained(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 16 if started else 10**9)
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET, start=pack[0], image_size=None)
    said: list[str] = []
    monkeypatch.setattr(Loop, "run", lambda *_, **__: pytest.fail("planned"))
    with pytest.raises(pytest.fail.Exception):
        train_pack(given, said.append)
    lines = [line.split() for line in said if line.startswith("  ")]
    seconds = {stage: float(rest[1]) for stage, *rest in lines if rest[0] == "about"}
    left = float(next(line for line in said if line.startswith("budget ")).split(", ")[1].split()[0])
    shares = {stage: STAGES[stage].share for stage in seconds}
    assert list(seconds) == ["clip", "vqgan", "transformer"]
    assert sum(seconds.values()) == pytest.approx(left, abs=2)
    assert seconds["vqgan"] > 0.65 * left  # more than the 60 % that it has beside all the others
    assert seconds["clip"] / seconds["transformer"] == pytest.approx(shares["clip"] / shares["transformer"], rel=0.2)
    assert [" ".join(line[:3]) for line in lines[3:]] == [
        f"{stage} left out:" for stage in ("prior", "captioner", "upscaler")
    ]


def test_a_stage_that_was_to_be_left_out_is_trained_where_an_earlier_one_saved_enough_time(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    step, shares = Loop._train_step, {"clip": 0.5, "vqgan": 0.4, "transformer": 0.1}
    for stage in STAGES.values():
        monkeypatch.setattr(type(stage), "share", shares.get(stage.name, 0.0))
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 200 if size.examples == 20_000 else 16)

    def stops(loop: Loop, batch: Any) -> None:  # the VQGAN ends after few steps
        step(loop, batch)
        loop.stopped |= loop.result == "vqgan" and loop.step == 2 and loop.config.steps > 5

    said: list[str] = []
    monkeypatch.setattr(Loop, "_train_step", stops)
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
    report = train_pack(given, said.append)
    assert any(line.startswith("  transformer left out: ") for line in said)
    assert any(line.startswith("transformer: ") and line.endswith("from micro") for line in said)
    assert report["stages"]["transformer"]["pictures"] >= 200
    assert "transformer" not in report["left_out"]


def test_a_loss_of_nan_within_a_budget_names_what_the_user_can_change(
    pack, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step = Loop._train_step

    def diverging(loop: Loop, batch: Any) -> None:
        step(loop, batch)
        loop.reporter.add("clip_loss", torch.tensor(float("nan")))

    monkeypatch.setattr(Loop, "_train_step", diverging)
    given = request(shapes, tmp_path / "second", plans={}, budget=3600.0, start=pack[0], image_size=None)
    with pytest.raises(TrainingError) as caught:
        train_pack(given, lambda text: None)
    said, _, remedy = str(caught.value).partition(": ")
    assert re.fullmatch(r"the loss of the CLIP became infinite or NaN at step \d+", said)
    assert remedy == f"delete {tmp_path / 'second.work'} and train again with another --seed"
    with pytest.raises(
        TrainingError, match="clip: the loss became infinite or NaN at step 4; there is no checkpoint yet: go on"
    ):
        train_pack(request(shapes, tmp_path / "third"), lambda text: None)


def test_the_command_line_counts_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    began: list[float] = []
    monkeypatch.setattr(pack_training, "train_pack", lambda request, say, draw, start: began.append(start) or {})
    before = time.monotonic()
    assert command(["train", str(tmp_path), "--out", str(tmp_path / "pack")]) == 0
    assert before <= began[0] <= time.monotonic()


def test_members_that_do_not_fit_are_new_and_it_is_said_why(pack, tmp_path: Path):
    other = Start(pack[0], STAGES.values(), 24)
    assert other.fits == ["clip", "vqgan"]
    assert other.origin(STAGES["transformer"]).startswith(
        "from nothing (micro's does not fit: the transformer draws a grid"
    )
    small = Start(pack[0], STAGES.values(), 8)
    assert small.origin(STAGES["vqgan"]) == "from nothing (micro's has 2 pixels a code, too many for pictures of 8)"
    assert small.origin(STAGES["transformer"]) == "from nothing (the VQGAN that it reads is new)"
    words = Start("emoji", STAGES.values(), 128, learned_words=True)
    assert words.unfit["clip"] == "emoji's does not read learned tokens"
    assert "vqgan" in words.fits
    assert "captioner" not in words.fits
    assert other.origin(STAGES["prior"]) == "from nothing (micro has none)"
    assert Start(None, STAGES.values(), 64).origin(STAGES["clip"]) == "from nothing"
    with pytest.raises(TrainingError, match=f"--from {tmp_path} is not a pack"):
        Start(tmp_path, STAGES.values(), 64)


def test_a_training_that_cannot_begin_leaves_nothing(shapes: Path, tmp_path: Path):
    for wrong in ({"start": tmp_path / "nothing"}, {"image_size": 20}):
        with pytest.raises(CodebrushError):
            train_pack(request(shapes, tmp_path / "micro", plans={}, budget=60.0, **wrong), lambda text: None)
        assert list(tmp_path.iterdir()) == []


def test_an_interrupted_training_says_how_to_go_on(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for stage, plan in PLANS.items():
        recipe, loop = json.loads(json.dumps(asdict(plan.recipe))), {"steps": 4, "batch_size": 4}
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump({"stage": stage, "recipe": recipe, "loop": loop}))
    out = tmp_path / "my pack"
    given = ["train", str(shapes), "--out", str(out), "--recipes", str(tmp_path), "--tokenizer", "bpe"]
    step = Loop._train_step

    def interrupted(loop: Loop, batch: Any) -> None:
        step(loop, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_train_step", interrupted)
    assert command(given) == 130
    *_, hint, last = capsys.readouterr().err.splitlines()
    assert (hint, last) == (f"to go on: {shlex.join(['codebrush', *given, '--resume'])}", "codebrush: stopped")
    monkeypatch.setattr(Loop, "_train_step", step)
    assert command(shlex.split(hint.removeprefix("to go on: codebrush "))) == 0
    printed = capsys.readouterr().out
    assert "ready" not in printed
    assert f"look at {out / 'reconstructions.png'} and {out / 'samples.png'}" in printed
    stage = ["train", "clip", str(tmp_path / "clip.yaml"), "--source", str(shapes), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(Loop, "_train_step", interrupted)
    assert command(stage) == 130
    hint = capsys.readouterr().err.splitlines()[-2]
    assert sorted(shlex.split(hint.removeprefix("to go on: "))) == sorted(["codebrush", *stage, "--resume"])
