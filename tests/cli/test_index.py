"""`codebrush index`: what it reports, and a missing LanceDB."""

import json
import sys
from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.shapes import scene


def test_a_report_of_what_was_done(micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        scene(0, index, 32).image.save(pictures / f"{index}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    command = ["index", str(pictures), str(pictures), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    assert run([*command, "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["added"], report["updated"], report["removed"], report["unchanged"]) == (3, 0, 0, 0)
    (skipped,) = report["skipped"]
    assert skipped["path"] == str(pictures / "broken.png")
    assert skipped["reason"].startswith("not a picture of a known kind")
    assert output.err == f"codebrush: skipped {skipped['path']}: {skipped['reason']}\n"
    (pictures / "0.png").unlink()
    assert run(command) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path / 'db'}: 0 added, 0 updated, 1 removed, 2 unchanged, 1 skipped;")


def test_cells_that_do_not_fit_are_one_line_a_column(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, prices in (("first", [3, 4]), ("second", ["dear", "cheap"])):
        (tmp_path / name).mkdir()
        lines = []
        for index, price in enumerate(prices):
            scene(0, index, 32).image.save(tmp_path / name / f"{index}.png")
            lines.append(json.dumps({"image": f"{index}.png", "price": price}))
        (tmp_path / name / "list.jsonl").write_text("\n".join(lines))
    places = [str(tmp_path / name / "list.jsonl") for name in ("first", "second")]
    assert run(["index", *places, "--db", str(tmp_path / "db"), "--pack", str(micro_pack), "--json"]) == 0
    output = capsys.readouterr()
    (unfit,) = json.loads(output.out)["unfit"]
    assert (unfit["column"], unfit["cells"], unfit["value"]) == ("price", 2, "dear")
    told = "codebrush: the column price holds numbers: 2 cells left empty, 'dear' of "
    assert output.err.startswith(f"{told}{tmp_path / 'second' / '0.png'} first; ")
    assert output.err.count("\n") == 1


def test_what_cannot_be_indexed(micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.md").touch()
    for place, told in (("none", "no such file or folder"), ("notes.md", "no data set")):
        command = ["index", str(tmp_path / place), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
        assert run(command) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "db").exists()


def test_without_lancedb(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene(0, 0, 32).image.save(tmp_path / "0.png")
    monkeypatch.setitem(sys.modules, "lancedb", None)
    command = ["index", str(tmp_path / "0.png"), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    assert run(command) == 1
    assert capsys.readouterr().err == "codebrush: search needs LanceDB: pip install 'codebrush[search]'\n"
    assert not (tmp_path / "db").exists()
