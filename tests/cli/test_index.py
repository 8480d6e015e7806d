"""`codebrush index`: its report, its error lines, and a missing LanceDB."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene


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
            lines.append(json.dumps({"image": f"{index}.png", "price": price, "text": "thing"}))
        (tmp_path / name / "list.jsonl").write_text("\n".join(lines))
    places = [str(tmp_path / name / "list.jsonl") for name in ("first", "second")]
    assert run(["index", *places, "--db", str(tmp_path / "db"), "--pack", str(micro_pack), "--json"]) == 0
    output = capsys.readouterr()
    (unfit,) = json.loads(output.out)["unfit"]
    assert (unfit["column"], unfit["cells"], unfit["value"]) == ("price", 2, "dear")
    line = "codebrush: the column price holds numbers: 2 cells left empty, first 'dear' of "
    assert output.err.startswith(f"{line}{tmp_path / 'second' / '0.png'}; rename the column in one of the sources")
    assert output.err.count("\n") == 1


def test_no_database_is_left_if_nothing_can_be_read(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db, pictures = tmp_path / "db", tmp_path / "pictures"
    pictures.mkdir()
    command = ["index", str(pictures), "--db", str(db), "--pack", str(micro_pack)]
    assert run(command) == 1
    assert capsys.readouterr().err == f"codebrush: nothing was indexed into {db}: there are no pictures\n"
    for name in ("a.png", "b.png"):
        (pictures / name).write_bytes(b"no picture")
    line = f"codebrush: nothing was indexed into {db}: none of the 2 pictures could be read"
    for given in ([], ["--json"]):
        assert run([*command, *given]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.splitlines()[2:] == [line]
        assert not db.exists()
    scene(0, 0, 32).image.save(tmp_path / "good.png")
    assert run(["index", str(tmp_path / "good.png"), *command[2:]]) == 0
    assert run(command) == 1  # an older database is kept
    assert run(["search", "--image", str(tmp_path / "good.png"), *command[2:]]) == 0
    assert str(tmp_path / "good.png") in capsys.readouterr().out


def test_a_folder_that_was_emptied_is_no_failure(micro_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    scene(0, 0, 32).image.save(tmp_path / "pictures" / "0.png")
    command = ["index", str(tmp_path / "pictures"), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    assert run(command) == 0
    (tmp_path / "pictures" / "0.png").unlink()
    assert run(command) == 0


def test_sources_that_are_gone_can_be_removed(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name under which they were indexed; the error says how. It needs no pack."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "one more", "two"):
        Path(name).mkdir()
        scene(0, 0, 32).image.save(f"{name}/0.png")
    given = ["--db", "db", "--pack", str(micro_pack)]
    assert run(["index", "one", "one more", "two", *given]) == 0
    shutil.rmtree("one more")
    capsys.readouterr()
    assert run(["index", "two", "one more", *given]) == 1
    line = "one more: no such file or folder; remove its pictures from the database with "
    assert capsys.readouterr().err == f"codebrush: {line}codebrush index --remove 'one more' --db db\n"
    assert run(["index", "--remove", "one more", "--db", "db", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["removed"], report["added"], report["skipped"]) == (1, 0, [])
    assert run(["search", "x", *given, "--json"]) == 0
    found = {each["path"] for each in json.loads(capsys.readouterr().out)["results"]}
    assert found == {str(tmp_path / "one" / "0.png"), str(tmp_path / "two" / "0.png")}
    assert run(["index", "one more", *given]) == 1  # no longer in the database, so without the remedy
    assert capsys.readouterr().err == "codebrush: one more: no such file or folder\n"
    assert run(["index", "--remove", "two", "one more", "--db", "db"]) == 1
    sources = ", ".join(str(tmp_path / name) for name in ("one", "two"))
    assert capsys.readouterr().err == f"codebrush: db holds no pictures of one more; its sources are {sources}\n"
    assert run(["index", "--remove", "two", "--db", "db", "--caption", "{label}"]) == 2
    assert "--caption cannot be used with --remove, which reads no pictures" in capsys.readouterr().err
    assert run(["index", "--remove", "two", "--db", "db"]) == 0  # the refused command removed nothing
    assert capsys.readouterr().out.startswith("db: 0 added, 0 updated, 1 removed, 0 unchanged, 0 skipped;")


def test_places_that_cannot_be_indexed_are_refused(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").touch()
    for place, reason in (("none", "no such file or folder"), ("notes.md", "not a data set")):
        command = ["index", str(tmp_path / place), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
        assert run(command) == 1
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "db").exists()


LANCEDB = 'search needs LanceDB: pip install "codebrush[search]"'


@pytest.mark.parametrize(
    ("package", "command", "line"),
    [
        ("lancedb", ["index", "0.png", "--db", "db"], LANCEDB),
        ("lancedb", ["index", "0.png", "--db", "db", "--remove"], LANCEDB),
        ("lancedb", ["search", "a cat", "--db", "db"], LANCEDB),
        (
            "sklearn",
            ["probe", "pictures", "--label", "kind"],
            'a probe needs scikit-learn: pip install "codebrush[eval]"',
        ),
        (
            "torchmetrics",
            ["evaluate", "no-pack", "pictures"],
            'measuring needs torchmetrics: pip install "codebrush[eval]", or add --leave-out reconstruction',
        ),
    ],
)
def test_a_missing_package_is_told_before_anything_is_opened(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    command: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    pack = [] if {"--remove", "evaluate"} & set(command) else ["--pack", "no-pack"]
    assert run([*command, *pack]) == 1
    assert capsys.readouterr().err == f"codebrush: {line}\n"
    assert not (tmp_path / "db").exists()


def test_other_names_of_columns_are_said_once_and_not_for_technical_fields(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.BytesIO()
    scene(0, 0, 32).image.save(file, "PNG")
    members = {"a.png": file.getvalue(), "a.json": b'{"caption": "a thing", "width": 7}'}
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    command = ["index", str(tmp_path / "shard.tar"), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    line = f"codebrush: columns of {tmp_path}/shard.tar with other names in the database: 'width' is source_width\n"
    for said in (line, ""):
        capsys.readouterr()
        assert run(command) == 0
        assert capsys.readouterr().err == said
    found = ["--db", str(tmp_path / "db"), "--pack", str(micro_pack), "--json"]
    assert run(["search", "x", "--where", "__key__ = 'a' AND source_width = 7 AND width = 32", *found]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1


def test_columns_that_could_be_captions_are_named(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "shop" / "Fotos"
    pictures.mkdir(parents=True)
    scene(0, 0, 32).image.save(pictures / "1.png")
    (tmp_path / "shop" / "list.csv").write_text("Bild;Bezeichnung;Preis\n1.png;Apfel;0,99\n")
    command = ["index", str(tmp_path / "shop"), "--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    hint = 'no column of captions among Bezeichnung, Preis; --caption "{Bezeichnung}" makes captions of that one\n'
    assert run(command) == 0
    assert hint in capsys.readouterr().err
    assert run([*command, "--caption", "{Bezeichnung}"]) == 0
    output = capsys.readouterr()
    assert "0 added, 1 updated" in output.out
    assert "no column of captions" not in output.err
