"""`codebrush explain`: a picture of the heat and how faithful it is."""

import json
from pathlib import Path

import pytest
from PIL import Image

from codebrush.cli.main import run
from codebrush.data.shapes import scene


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    scene(0, 1, 48).image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_a_picture_is_explained(
    micro_pack: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heat.png"
    given = ["explain", str(picture), "a red circle", "--out", str(out), "--pack", str(micro_pack), "--json"]
    assert run(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(out)
    assert [word["word"] for word in report["words"]] == ["a", "red", "circle"]
    faithfulness = report["faithfulness"]
    assert {"insertion", "deletion"} <= set(faithfulness)
    assert Image.open(out).width > 100


def test_what_cannot_be_explained_is_one_line(
    micro_pack: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    pack = ["--pack", str(micro_pack), "--out", str(tmp_path / "heat.png")]
    assert run(["explain", str(broken), "a dog", *pack]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert run(["explain", str(picture), " ", *pack]) != 0
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "heat.png").exists()


def test_the_picture_itself_is_not_written_over(
    micro_pack: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = picture.read_bytes()
    assert run(["explain", str(picture), "a red circle", "--pack", str(micro_pack), "--out", str(picture)]) == 2
    assert "is the picture itself: name another file" in capsys.readouterr().err
    assert picture.read_bytes() == before
