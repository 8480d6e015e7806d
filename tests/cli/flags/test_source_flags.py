"""The flags of a source mean the same for every command that reads captioned pictures, and so does its report."""

import json
import os
from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene

COMMANDS = {
    "index": ["index", "SOURCE", "--db", "OUT"],
    "duplicates": ["duplicates", "SOURCE"],
    "curate": ["curate", "SOURCE", "--out", "OUT"],
    "evaluate": ["evaluate", "PACK", "SOURCE", *(f"--leave-out={part}" for part in ("reconstruction", "drawing"))],
    "probe": ["probe", "SOURCE", "--label", "label"],
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Scenes of two labels and two splits, a picture of each that is cut off, and a file of another kind."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number in range(12):
        path, split, label = folder / f"{number}.png", ("train", "test")[number // 6], ("even", "odd")[number % 2]
        scene(0, number, 32).image.save(path)
        lines.append({"file_name": path.name, "caption": f"a scene, {number}", "label": label, "split": split})
        if number in (5, 11):
            path.write_bytes(path.read_bytes()[:60])
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "letter.docx").write_text("dear all")
    return folder


def given(command: str, source: Path, pack: Path) -> list[str]:
    places = {"SOURCE": str(source), "PACK": str(pack), "OUT": str(source.parent / "out")}
    words = [places.get(word, word) for word in COMMANDS[command]]
    return words if command in ("curate", "evaluate") else [*words, "--pack", str(pack)]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_read_is_listed_and_said_once(
    command: str, pictures: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*given(command, pictures, micro_pack), "--json"]) == 0
    output = capsys.readouterr()
    unread = json.loads(output.out)["unread"]
    (about,) = unread if isinstance(unread, list) else [unread]  # one for each source where there may be several
    assert about == {"named": [], "counted": {".docx file": 1}, "notes": []}
    assert output.err.count("1 .docx file was not read") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_strict_stops_at_a_picture_that_cannot_be_decoded(
    command: str, pictures: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*given(command, pictures, micro_pack), "--strict"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("codebrush: ")
    assert ("11.png" if command == "evaluate" else "5.png") + ": cannot be decoded" in last


@pytest.mark.parametrize("command", COMMANDS)
def test_the_limit_on_pixels_is_a_flag_of_every_command(
    command: str, pictures: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEBRUSH_MAX_PIXELS", "5000")
    arguments = given(command, pictures, micro_pack)
    assert run([*arguments, "--max-pixels", "1000", "--strict"]) == 1
    error = capsys.readouterr().err
    assert "32 x 32 is over the limit of 1,000 pixels" in error
    assert "raise the limit with --max-pixels 1024" in error
    assert os.environ["CODEBRUSH_MAX_PIXELS"] == "5000"  # the flag is for one command
    assert run([*arguments, "--max-pixels", "1024"]) == 0


def test_a_limit_of_no_pixels_is_refused(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classify", str(pictures / "0.png"), "--labels", "a,b", "--max-pixels", "0"]) == 2
    assert "Invalid value for '--max-pixels'" in capsys.readouterr().err
    assert "CODEBRUSH_MAX_PIXELS" not in os.environ
