"""`codebrush similar` and `codebrush duplicates`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from codebrush.cli import train
from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene
from codebrush.search.duplicates import Cluster, DuplicateReport, Similarity


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


def test_one_is_not_printed_as_several(micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = scene(0, 0, 32).image
    picture.save(tmp_path / "0.png")
    picture.save(tmp_path / "0.bmp")
    Image.new("RGB", (32, 32)).save(tmp_path / "plain.png")
    assert run(["duplicates", str(tmp_path), "--pack", str(micro_pack)]) == 0
    *_, plain, last = capsys.readouterr().out.splitlines()
    assert plain == f"1 of one colour was not compared, {tmp_path / 'plain.png'} first"
    assert last.startswith("1 of 3 pictures is a near-duplicate of another")


@pytest.mark.parametrize(("bits", "said"), [(0, "0 bits"), (1, "1 bit"), (2, "2 bits")])
def test_bits_agree_in_number(
    micro_pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    said: str,
) -> None:
    found = Cluster("a.png", [("b.png", Similarity(1.0, bits, False))])
    report = DuplicateReport(2, [found], [], [], {})
    monkeypatch.setattr("codebrush.search.duplicates.find_duplicates", lambda *_, **__: report)
    scene(0, 0, 32).image.save(tmp_path / "0.png")
    assert run(["duplicates", str(tmp_path), "--pack", str(micro_pack)]) == 0
    assert f"  b.png  (cosine 1.000, {said})" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("steps", "said"), [(1, "1 step"), (2, "2 steps")])
def test_steps_agree_in_number(capsys: pytest.CaptureFixture[str], steps: int, said: str) -> None:
    train._print(
        {"stages": {"prior": {"steps": steps, "parameters": 7, "seconds": 0.5}}, "model": "m", "seconds": 1}, False
    )
    assert capsys.readouterr().out.splitlines()[0] == f"prior: {said}, 7 parameters, 0.5 s"
