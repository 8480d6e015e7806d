"""`generate --method guide` on a pack with random weights: files, progress, interruption, resumption, video."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence
from torch.optim.optimizer import register_optimizer_step_post_hook

from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from packs import micro_clip, write_micro_pack

SHORT = ("--method", "guide", "--steps", 4, "--show-every", 2, "--cutouts", 2)


def generate(*arguments: object) -> int:
    return run(["generate", *map(str, arguments)])


def generate_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert generate(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def run_folder(micro_pack: Path, tmp_path: Path) -> Path:
    """A guided run of one picture that is at its end."""
    folder = tmp_path / "run"
    assert generate("a dog", *SHORT, "--pack", micro_pack, "--out", folder, "--json") == 0
    return folder


def test_a_run_lies_in_its_folder_and_prints_its_steps(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "run"
    options = ("--n", 2, "--seed", 9, "--no-quantise", "--extra", "red", "--extra", "round", "--optimizer", "Adam")
    assert generate("a dog", *SHORT, *options, "--pack", micro_pack, "--out", out, "--video", "mp4", "--json") == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert set(report) == {"images", "folder", "steps", "video", "prompt", "seconds"}
    assert (report["folder"], report["steps"], report["video"]) == (str(out), 4, str(out / "video.mp4"))
    assert Path(report["video"]).stat().st_size > 500
    scores = [image["clip_score"] for image in report["images"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(image["index"] for image in report["images"]) == [0, 1]
    for image in report["images"]:
        assert Path(image["path"]) == out / f"picture_{image['index']:02d}.png"
        manifest = read_manifest(image["path"])
        assert (manifest["method"], manifest["seed"], manifest["index"]) == ("guide", 9, image["index"])
        assert manifest["clip_score"] == image["clip_score"]
        expected = {"quantise": False, "extra": ["red", "round"], "optimizer": "Adam", "steps": 4}
        assert expected.items() <= manifest["options"].items()
    figures = r"loss \d\.\d{3}  similarity -?\d\.\d{3}(  \d+\.\d+ steps/s)?"
    lines = [
        f"picture {picture} of 2  step {step}/4" for picture in (1, 2) for step in (1, 2, 3, 4)
    ]  # each in the film
    assert re.fullmatch("".join(rf"{line}  {figures}\n" for line in lines), output.err)


def test_a_run_without_a_folder_gets_one_of_its_own(
    micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("A dog!", *SHORT, "--steps", 1, "--seed", 3, "--pack", micro_pack)
    reports = [generate_json(capsys, *command) for _ in range(2)]
    folders = [report["folder"] for report in reports]
    assert folders == ["outputs/a-dog_seed3_guide", "outputs/a-dog_seed3_guide-run2"]
    pictures = [report["images"] for report in reports]
    assert [[image["path"] for image in images] for images in pictures] == [[f"{f}/picture_00.png"] for f in folders]
    first, second = (Image.open(images[0]["path"]) for images in pictures)
    assert first.tobytes() == second.tobytes()
    assert generate(*command, "--out", folders[0]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_the_report_names_the_folder_and_the_video(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    video = run_folder / "sub" / "my film.gif"
    assert generate("--resume", run_folder, "--video", video, "--fps", 5, "--between", 3) == 0
    output = capsys.readouterr()
    assert output.err == f"codebrush: the run in {run_folder} was finished already: no step was left to take\n"
    lines = output.out.splitlines()
    assert lines[1].split()[0] == str(run_folder / "picture_00.png")
    assert lines[2].startswith("the CLIP that scores them guided them too")
    assert lines[3:5] == [f"run: {run_folder}", f"video: {video}"]
    with Image.open(video) as film:
        lengths = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert sum(lengths) == (3 + 2 * 3) * 200  # Pillow shows one of several frames that are alike for longer


def interrupt_after(steps: int) -> None:
    """Send this process SIGINT in that step of the optimizer, once."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == steps:
            hook.remove()
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_optimizer_step_post_hook(count)


def test_a_run_that_was_interrupted_goes_on_to_the_same_pixels(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("a dog", "--method", "guide", "--steps", 8, "--cutouts", 2, "--pack", micro_pack)
    broken, whole = tmp_path / "a broken run", tmp_path / "whole"
    interrupt_after(4)
    assert generate(*command, "--out", broken) == 130
    output = capsys.readouterr()
    assert output.out == ""
    found = re.fullmatch(
        rf"codebrush: stopped after step (\d+); continue with: codebrush generate --resume '{broken}'\n",
        output.err.splitlines(keepends=True)[-1],
    )
    assert found
    assert found[1] in ("3", "4")
    resumed = generate_json(capsys, "--resume", broken, "--method", "guide")
    assert "video" not in resumed
    unbroken = generate_json(capsys, *command, "--out", whole)
    assert resumed["steps"] == unbroken["steps"] == 8
    assert resumed["images"][0]["clip_score"] == unbroken["images"][0]["clip_score"]
    first, second = (Image.open(report["images"][0]["path"]) for report in (resumed, unbroken))
    assert first.tobytes() == second.tobytes()
    assert (broken / "losses.jsonl").read_text() == (whole / "losses.jsonl").read_text()


def test_a_run_that_was_stopped_before_it_began_leaves_nothing_to_resume(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codebrush.generation.guided.run.guided_run.plan_memory", stop)
    command = ("a dog", "--method", "guide", "--pack", micro_pack, "--video", "gif", "--out", tmp_path / "run")
    assert generate(*command) == 130
    assert capsys.readouterr().err == "codebrush: stopped\n"
    assert not (tmp_path / "run").exists()


def test_enlarged_pictures_say_which_step_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upscaler = Upscaler(UpscalerConfig(width=8, blocks=1))
    pack = write_micro_pack(tmp_path / "pack", scorer=micro_clip(), upscaler=upscaler)
    command = ("a dog", "--method", "guide", "--steps", 1, "--cutouts", 2, "--pack", pack, "--upscale", 2)
    (image,) = generate_json(capsys, *command, "--out", tmp_path / "run")["images"]
    assert image["path"] == str(tmp_path / "run" / "picture_00_x2.png")
    assert image["kept_step"] == read_manifest(image["path"])["steps"]
    assert isinstance(image["scorer_at_start"], float)


def test_a_resumed_run_makes_the_video_that_it_was_begun_with(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("a dog", "--method", "guide", "--steps", 8, "--cutouts", 2, "--pack", micro_pack)
    video = ("--video", "webp", "--fps", 20, "--between", 1)
    interrupt_after(4)
    assert generate(*command, *video, "--out", tmp_path / "broken") == 130
    resumed = generate_json(capsys, "--resume", tmp_path / "broken")
    whole = generate_json(capsys, *command, *video, "--out", tmp_path / "whole")
    assert resumed["video"] == str(tmp_path / "broken" / "video.webp")
    assert Path(resumed["video"]).read_bytes() == Path(whole["video"]).read_bytes()
    other = generate_json(capsys, "--resume", tmp_path / "broken", "--video", "gif", "--fps", 5)
    with Image.open(other["video"]) as film:
        lengths = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert sum(lengths) == (9 + 8) * 200  # with --between as before


def test_a_video_lasts_ten_seconds_if_nothing_else_is_asked_for(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("a dog", *SHORT, "--pack", micro_pack, "--out", tmp_path / "run", "--video", "gif")
    with Image.open(generate_json(capsys, *command)["video"]) as film:
        lengths = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert 10_000 <= sum(lengths) <= 11_000  # milliseconds


def test_a_run_finds_its_pack_or_asks_for_it(
    micro_pack: Path, tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((run_folder / "run.json").read_text())
    about["pack"]["source"] = "./moved"
    (run_folder / "run.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert generate("--resume", run_folder) == 1
    assert "which is not on this machine: name it with --pack" in capsys.readouterr().err
    assert generate_json(capsys, "--resume", run_folder, "--pack", micro_pack)["steps"] == 4
    other = write_micro_pack(tmp_path / "other", seed=1)
    assert generate("--resume", run_folder, "--pack", other) == 1
    assert re.fullmatch(r"codebrush: .*\n", capsys.readouterr().err)


def test_a_guided_picture_can_be_replayed(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["replay", str(run_folder / "picture_00.png"), "--out", str(tmp_path / "x.png"), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["images"][0]["identical"] is True
    assert output.err == ""


def test_flags_of_sampling_shape_the_start(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("a dog", *SHORT, "--steps", 0, "--pack", micro_pack, "--cfg", 2, "--rerank", 3)
    assert generate(*command, "--init", "random", "--out", tmp_path / "out") == 2
    assert re.fullmatch(r"codebrush: cfg is for drawing codes: .*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    report = generate_json(capsys, *command, "--out", tmp_path / "out")
    sampling = read_manifest(report["images"][0]["path"])["sampling"]
    assert (sampling["cfg"], sampling["rerank"]) == (2.0, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["", *SHORT], 2, "prompt is empty"),
        (["dog", *SHORT, "--n", "0"], 2, "n must be"),
        (["dog", *SHORT, "--crop-min", "3"], 2, "crop_min must be at most"),
        (["dog", *SHORT, "--flip", "nan"], 2, "flip must be a number"),
        (["dog", *SHORT, "--schedule", "up"], 2, "schedule must be one of constant, linear, cosine"),
        (["dog", *SHORT, "--preset", "book"], 2, "preset must be one of sample, random, notebook"),
        (["dog", *SHORT, "--size", "33x32"], 2, "33x32"),
        (["dog", *SHORT, "--init", "nowhere.png"], 2, "nowhere.png"),
        (["dog", *SHORT, "--max-memory", "much"], 2, "max_memory"),
        (["--resume", "nowhere"], 1, "nowhere holds no guided run"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[object],
    status: int,
    named: str,
    micro_pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate(*arguments, "--pack", micro_pack, "--json") == status
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"codebrush: .*\n", output.err)
    assert named in output.err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_one_line(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for name in ("state.pt", "run.json"):
        copy = tmp_path / f"without {name}"
        shutil.copytree(run_folder, copy)
        (copy / name).write_bytes(b"{}")
        assert generate("--resume", copy) == 1
        assert re.fullmatch(rf"codebrush: .*{name} is damaged .*\n", capsys.readouterr().err)
