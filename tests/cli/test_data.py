"""`codebrush data`: writes sources that can be trained on."""

import json
from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.sources.captioned_images import open_source


def test_shapes_make_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes"
    assert run(["data", "shapes", "--out", str(out), "--count", "6", "--size", "32", "--seed", "4", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    report = json.loads(output.out)
    assert (report["path"], report["pictures"]) == (str(out), 6)
    source = open_source(str(out))
    assert len(source) == 6
    assert source.image(0).size == (32, 32)
    assert source.captions(0)


@pytest.mark.parametrize(("options", "status"), [(["--count", "0"], 2), (["--size", "0"], 2), (["--objects", "99"], 2)])
def test_shapes_out_of_range_are_one_line(
    options: list[str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "shapes", "--out", str(tmp_path / "out"), "--count", "2", *options]) == status
    output = capsys.readouterr()
    assert output.err.startswith("codebrush: ")
    assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["data", "shapes", "--out", str(tmp_path), "--count", "2"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_emoji_need_a_font(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    font = tmp_path / "font.ttf"
    font.write_text("no font")
    assert run(["data", "emoji", "--out", str(tmp_path / "out"), "--font", str(font), "--limit", "2"]) == 1
    assert str(font) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
