"""`codebrush similar` and `codebrush duplicates`."""

import json
from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        scene(0, index, 64, objects=4).image.save(folder / f"{index}.png")
    scene(0, 0, 64, objects=4).image.resize((48, 48)).save(folder / "0-small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_clusters(pictures: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(pictures.iterdir())
    assert run(["duplicates", str(pictures), "--pack", str(micro_pack), "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["pictures"] == 4
    (cluster,) = report["clusters"]
    assert cluster["representative"] == str(pictures / "0.png")
    (copy,) = cluster["duplicates"]
    assert copy.keys() == {"path", "cosine", "distance", "identical"}
    assert copy["path"] == str(pictures / "0-small.png")
    assert [each["path"] for each in report["skipped"]] == [str(pictures / "broken.png")]
    assert output.err.startswith("codebrush: skipped ")
    assert sorted(pictures.iterdir()) == before
    assert run(["duplicates", str(pictures), "--pack", str(micro_pack), "--distance", "64", "--cosine", "-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] in [str(path) for path in before]
    assert lines[1].startswith(f"  {pictures}")
    assert lines[-1].startswith("3 of 4 pictures are near-duplicates of another")


def test_two_pictures(pictures: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, small = (str(pictures / name) for name in ("0.png", "1.png", "0-small.png"))
    assert run(["similar", one, small, "--pack", str(micro_pack), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() == {"a", "b", "cosine", "distance", "identical", "near_identical"}
    assert (report["near_identical"], report["identical"]) == (True, False)
    for second, verdict in ((one, "identical: cosine 1.000, 0 of 64 bits differ"), (other, "different: cosine ")):
        assert run(["similar", one, second, "--pack", str(micro_pack)]) == 0
        assert capsys.readouterr().out.startswith(verdict)
    assert run(["similar", one, str(pictures / "broken.png"), "--pack", str(micro_pack)]) == 1
    assert "broken.png: not a picture of a known kind" in capsys.readouterr().err
