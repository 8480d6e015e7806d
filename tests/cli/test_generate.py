"""`codebrush generate` and `codebrush replay` on a pack with random weights."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest, save_png
from packs import micro_clip, micro_transformer, write_micro_pack


@pytest.fixture
def drawn(micro_pack: Path, tmp_path: Path) -> Path:
    """A picture that the pack made."""
    result = Codebrush.from_pretrained(micro_pack).generate("a dog", n=1, seed=3, rerank=2)[0]
    save_png(result.image, tmp_path / "drawn.png", result.manifest)
    return tmp_path / "drawn.png"


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run([*map(str, arguments), "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.count("\n") == 1
    return json.loads(output.out)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"codebrush: .*\n", output.err)
    return output.err


def test_pictures_are_written_with_their_manifest(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    options = ["--n", 3, "--seed", 9, "--cfg", 2, "--temperature", 0.8, "--top-k", 50, "--top-p", 0.9]
    started = time.perf_counter()
    report = run_json(
        capsys,
        *("generate", "A red: apple!", "--pack", micro_pack, "--out", out),
        *(*options, "--min-p", 0.01, "--rerank", 5),
    )
    assert set(report) == {"images", "sheet", "prompt", "seconds"}
    assert 0 < report["seconds"] < time.perf_counter() - started
    scores = [image["clip_score"] for image in report["images"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    for image in report["images"]:
        assert Path(image["path"]) == out / f"a-red-apple_seed9_{image['index']:02d}.png"
        assert image["seed"] == 9
        manifest = read_manifest(image["path"])
        assert manifest["prompt"] == "A red: apple!"
        assert (manifest["seed"], manifest["index"]) == (9, image["index"])
        assert manifest["clip_score"] == image["clip_score"]
        assert manifest["options"] == {
            **{"n": 3, "rerank": 5, "cfg": 2.0, "temperature": 0.8},
            **{"top_k": 50, "top_p": 0.9, "min_p": 0.01},
        }
        assert Image.open(image["path"]).size == (32, 32)
    assert Path(report["sheet"]) == out / "a-red-apple_seed9_sheet.png"
    assert Image.open(report["sheet"]).width > 3 * 32
    assert len(list(out.iterdir())) == 4


def test_style_and_negative_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    styles = {"text": "{prompt}, {style} style", "names": ["noto", "3d"]}
    transformer = micro_transformer(source_codes=True)
    pack = write_micro_pack(tmp_path / "pack", transformer=transformer, extras={"styles": styles})
    words = ["--style", "noto", "--negative-prompt", "blurry", "--pack", pack, "--n", 1, "--out", tmp_path / "out"]
    drawn = run_json(capsys, "generate", "a dog", *words)
    edited = run_json(capsys, "edit", drawn["images"][0]["path"], "a dog", *words)
    guidance = ["generate", "a dog", "--method", "guide", "--steps", 1, *words, "--json"]
    assert run([str(each) for each in guidance]) == 0
    made = [drawn, edited, json.loads(capsys.readouterr().out)]
    for report in made:
        assert report["prompt"] == [{"text": "a dog, noto style", "weight": 1}, {"text": "blurry", "weight": -0.5}]
        assert report["style"] == "noto"
    assert Path(drawn["images"][0]["path"]).name.startswith("a-dog_noto_seed0_")
    assert run(["generate", "a dog", "--style", "oil", "--pack", str(pack)]) == 2
    assert "the pack has no style 'oil': it has noto, 3d" in complaint(capsys)


def test_a_second_run_overwrites_nothing(micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", "[b] *?", "--pack", micro_pack, "--n", 1, "--rerank", 1, "--out", tmp_path)
    runs = [run_json(capsys, *command) for _ in range(3)]
    names = [Path(report["images"][0]["path"]).name for report in runs]
    assert names == ["b_seed0_00.png", "b_seed0-run2_00.png", "b_seed0-run3_00.png"]
    contents = [(tmp_path / name).read_bytes() for name in names]
    assert contents[0] == contents[1] == contents[2]
    assert all("sheet" not in report for report in runs)  # of one picture
    several = [run_json(capsys, *command[:5], n, *command[6:7], n, *command[8:]) for n in (2, 3, 2)]
    assert len({report["sheet"] for report in several}) == 3
    assert len(list(tmp_path.glob("*_sheet.png"))) == 3


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("\N{DOG FACE}", "picture"), ("ein Äpfel/../x", "ein-äpfel-x"), ("дом", "дом"), ("w" * 300, "w" * 40)],
)
def test_names_come_from_the_prompt(
    prompt: str, name: str, micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", prompt, "--pack", str(micro_pack), "--n", "1", "--rerank", "1", "--out", str(tmp_path)]
    assert run([*command, "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["images"][0]["path"]).name == f"{name}_seed0_00.png"


def test_without_json_people_read_paths_and_scores(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a long [bold]name[/bold] :smile: that would not fit on one line of a narrow terminal at all"
    assert run(["generate", "a dog", "--pack", str(micro_pack), "--n", "2", "--out", str(out)]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].split() == ["picture", "CLIP", "score"]
    for line in lines[1:3]:
        path, score = line.strip().rsplit(None, 1)
        assert Path(path).is_file()
        assert read_manifest(path)["clip_score"] == pytest.approx(float(score), abs=5e-4)
    assert lines[3].startswith("the pack has no scorer")
    assert lines[4] == f"contact sheet: {out / 'a-dog_seed0_sheet.png'}"
    assert re.fullmatch(r"[\d.]+ seconds", lines[5])


@pytest.mark.parametrize(
    ("scored", "levels", "lacks"),
    [(False, {}, "scorer"), (True, {}, "levels for its scorer"), (True, {"scores": {"likely": 9, "unlikely": 8}}, "")],
)
def test_scores_that_are_no_verdicts_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scored: bool, levels: dict[str, Any], lacks: str
) -> None:
    pack = write_micro_pack(tmp_path / "pack", **({"scorer": micro_clip()} if scored else {}), extras=levels)
    drawing = ["generate", "a dog", "--n", "1", "--rerank", "1", "--pack", str(pack), "--out", str(tmp_path / "out")]
    assert run(drawing) == 0
    said = capsys.readouterr().out
    line = f"the pack has no {lacks}: scores sort the pictures, and do not say whether they show the prompt"
    assert (line in said) if lacks else ("do not say whether" not in said)


def test_a_long_prompt_is_drawn_with_a_warning(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "dog " * 60, "--pack", str(micro_pack), "--n", "1", "--rerank", "1"]
    assert run([*command, "--out", str(tmp_path), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["images"]
    assert re.fullmatch(r"codebrush: warning: .* tokens: only the first \d+ are read\n", output.err)


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["generate", ""], 2, "prompt is empty"),
        (["generate", " \t "], 2, "prompt is empty"),
        (["generate", "a" * 10_000], 2, "10,000 characters"),
        (["generate", "dog:heavy"], 2, '"heavy"'),
        (["generate", "dog | | cat"], 2, "empty"),
        (["generate", "dog", "--n", "0"], 2, "n must be"),
        (["generate", "dog", "--n", "100000"], 2, "n must be"),
        (["generate", "dog", "--top-p", "7"], 2, "top_p must be"),
        (["generate", "dog", "--temperature", "nan"], 2, "temperature must be"),
        (["generate", "dog", "--cfg", "inf"], 2, "cfg must be"),
        (["generate", "dog", "--rerank", "1"], 2, "rerank must be"),
        (["generate", "dog", "--seed", "-1"], 2, "seed must be"),
        (["generate", "dog", "--pack", "nowhere"], 1, "no pack 'nowhere'"),
        (["generate", "dog", "--pack", "./no/where"], 1, "no folder './no/where'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str],
    status: int,
    named: str,
    micro_pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack = [] if "--pack" in arguments else ["--pack", str(micro_pack)]
    assert run([*arguments, *pack, "--out", str(tmp_path / "out"), "--json"]) == status
    assert named in complaint(capsys)
    assert not (tmp_path / "out").exists()


def test_a_damaged_pack_is_one_line(micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(micro_pack, pack)
    with open(pack / "transformer" / "model.safetensors", "r+b") as file:
        file.truncate(500)
    assert run(["generate", "dog", "--pack", str(pack), "--out", str(tmp_path / "out")]) == 1
    assert str(pack / "transformer") in complaint(capsys)
    assert not (tmp_path / "out").exists()


def mount(*arguments: str) -> bool:
    command = shutil.which("mount")
    return command is not None and subprocess.run([command, *arguments], capture_output=True).returncode == 0


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount something on."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    micro_pack: Path, mounted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not mount("-t", "tmpfs", "-o", "size=24k", "tmpfs", str(mounted)):
        pytest.skip("a small file system cannot be mounted here")
    command = ["generate", "a dog", "--pack", str(micro_pack), "--n", "8", "--rerank", "8"]
    assert run([*command, "--out", str(mounted)]) == 1
    assert "No space left on device" in complaint(capsys)
    left = list(mounted.iterdir())
    assert left
    for path in left:
        assert path.suffix == ".png"
        Image.open(path).load()


def test_a_read_only_folder_is_one_line(
    micro_pack: Path, mounted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() != 0:
        mounted.chmod(0o500)
    elif not mount("-t", "tmpfs", "-o", "ro", "tmpfs", str(mounted)):
        pytest.skip("a read-only file system cannot be mounted here")
    for out in (mounted, mounted / "below"):
        assert run(["generate", "a dog", "--pack", str(micro_pack), "--out", str(out)]) == 1
        assert f"{mounted} is read-only; name another folder" in complaint(capsys)


def test_a_folder_that_takes_no_files_is_refused_before_drawing(
    micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc")
    monkeypatch.setattr(Codebrush, "generate", None)
    assert run(["generate", "a dog", "--pack", str(micro_pack), "--out", "/proc/pictures"]) == 1
    assert "cannot write in /proc/pictures: /proc " in (line := complaint(capsys))
    assert "name another folder with --out" in line


def test_a_file_in_the_place_of_the_folder_is_one_line(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    for out in (file, file / "below"):
        assert run(["generate", "a dog", "--pack", str(micro_pack), "--out", str(out)]) == 1
        assert f"{file} is a file; name another folder" in complaint(capsys)
    assert file.read_text() == "text"


def test_replay_draws_the_same_pixels(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (run_json(capsys, "replay", drawn)["images"][0] for _ in range(2))
    assert (first["path"], second["path"]) == ("outputs/drawn_replay.png", "outputs/drawn_replay-2.png")
    named = run_json(capsys, "replay", drawn, "--out", tmp_path / "x" / "named.png")["images"][0]
    for image in (first, second, named):
        assert image["identical"] is True
        assert image["seed"] == 3
        assert Image.open(image["path"]).tobytes() == Image.open(drawn).tobytes()
        assert read_manifest(image["path"]) == read_manifest(drawn)


def test_replay_warns_if_the_picture_was_changed(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, manifest = Image.open(drawn).convert("RGB"), read_manifest(drawn)
    picture.paste("red", (0, 0, 3, 3))
    save_png(picture, tmp_path / "changed.png", manifest)
    out = tmp_path / "again.png"
    assert run(["replay", str(tmp_path / "changed.png"), "--out", str(out), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["images"][0]["identical"] is False
    assert output.err == f"codebrush: warning: the pixels differ from those of {tmp_path / 'changed.png'}\n"


def test_replay_refuses_what_is_not_ours(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, text, photo = (tmp_path / name for name in ("plain.png", "text.png", "photo.jpg"))
    Image.new("RGB", (8, 8)).save(plain)
    text.write_text("not a picture")
    Image.new("RGB", (8, 8)).save(photo)
    for path in (plain, text, photo, tmp_path / "missing.png", tmp_path):
        assert run(["replay", str(path), "--out", str(tmp_path / "out.png")]) == 1
        assert str(path) in complaint(capsys)
    for change in ({"options": {}}, {"pack": {"name": "x"}}, {"pack": {"source": "someone/pack"}}, {"method": "?"}):
        save_png(Image.new("RGB", (8, 8)), plain, {**read_manifest(drawn), **change})
        assert run(["replay", str(plain), "--out", str(tmp_path / "out.png")]) == 1
        complaint(capsys)
    assert not (tmp_path / "out.png").exists()
    assert run(["replay", str(drawn), "--out", str(tmp_path / "out.jpg")]) == 2
    assert "--out must be the name of a .png file" in complaint(capsys)


def test_replay_finds_the_pack_or_asks_for_it(
    drawn: Path, micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(drawn)
    manifest["pack"]["source"] = "./moved"
    save_png(Image.open(drawn), tmp_path / "moved.png", manifest)
    command = ["replay", str(tmp_path / "moved.png"), "--out", str(tmp_path / "out.png")]
    assert run(command) == 1
    assert "which is not on this machine: name it with --pack" in complaint(capsys)
    assert run_json(capsys, *command, "--pack", micro_pack)["images"][0]["identical"] is True
    other = write_micro_pack(tmp_path / "other", seed=1)
    assert run([*command, "--pack", str(other)]) == 1
    assert "open the one it was made with" in complaint(capsys)


def test_another_process_draws_the_same_pixels(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "codebrush", "generate", "a dog", "--pack", str(micro_pack), "--n", "1"]
    command += ["--seed", "8", "--out", "here", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    original = tmp_path / json.loads(done.stdout)["images"][0]["path"]
    again = run_json(capsys, "replay", original, "--out", tmp_path / "again.png")
    assert again["images"][0]["identical"] is True
    assert Image.open(tmp_path / "again.png").tobytes() == Image.open(original).tobytes()
