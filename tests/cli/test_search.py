"""`codebrush search` on a small database: its output, its contact sheet and its error lines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene
from codebrush.search.native_stderr import DEBUG_VARIABLE
from codebrush.search.nearness import Nearness
from codebrush.search.places import TABLE_FOLDER
from packs import write_micro_pack


@pytest.fixture
def ask(
    database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict]]:
    monkeypatch.setattr("codebrush.search.finding.nearness", lambda *_, **__: Nearness(1.0))  # random weights

    def answer(*arguments: str) -> list[dict]:
        capsys.readouterr()
        assert run(["search", *arguments, "--db", str(database), "--pack", str(micro_pack), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["results"]

    return answer


def test_a_text_a_picture_and_both(ask, database: Path) -> None:
    results = ask("a red flower", "-k", "3")
    assert len(results) == 3
    assert all(set(each) == {"path", "score", "caption", "exists", "columns"} for each in results)
    own = {"source", "width", "height", "size", "modified", "hash", "text_hash", "folder"}
    assert all(each["exists"] and set(each["columns"]) == own for each in results)
    assert results[0]["columns"]["folder"] == "pictures"
    assert [each["score"] for each in results] == sorted((each["score"] for each in results), reverse=True)
    picture = database.parent / "pictures" / "3.png"
    alike = ask("--image", str(picture))
    assert alike[0]["path"] == str(picture)
    assert alike[0]["score"] == pytest.approx(1, abs=1e-5)
    both = ask("a red flower", "--image", str(picture), "--image-weight", "1")
    assert [each["path"] for each in both] == [each["path"] for each in alike]
    assert ask("a red flower", "--image", str(picture), "--image-weight", "0", "-k", "3") == results
    assert ask("a red flower", "--without", "a cat", "-k", "3") != results


def test_captions_and_conditions(ask) -> None:
    assert {each["caption"] for each in ask("flower", "--mode", "text")} == {"a red flower", "two red flowers"}
    assert [each["caption"] for each in ask("red", "--mode", "text", "--without", "two")] == ["a red flower"]
    assert [each["caption"] for each in ask("flower", "--where", "caption LIKE '%frog'")] == ["a green frog"]
    assert len(ask("flower", "--mode", "hybrid")) == 5


def test_pictures_that_are_gone_are_marked(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files, and rows of a data source that no longer exists."""
    for index in range(2):
        scene(0, index, 32).image.save(tmp_path / f"{index}.png")
    inside = {"image": {"bytes": (tmp_path / "0.png").read_bytes(), "path": "cat.png"}}
    pq.write_table(pa.Table.from_pylist([inside]), tmp_path / "pets.parquet")
    given = ["--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    places = [str(tmp_path / name) for name in ("0.png", "1.png", "pets.parquet")]
    assert run(["index", *places, *given]) == 0
    for gone, marks in (("0.png", [False, True, True]), ("pets.parquet", [False, True, False])):
        (tmp_path / gone).unlink()
        capsys.readouterr()
        assert run(["search", "x", *given, "--json"]) == 0
        results = sorted(json.loads(capsys.readouterr().out)["results"], key=lambda each: each["path"])
        assert [each["exists"] for each in results] == marks
    assert run(["search", "x", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[1].strip() for line in lines[1:]} == {
        f"{places[0]} (gone)",
        places[1],
        f"{places[2]}#cat.png (gone)",
    }


def test_results_and_the_given_picture_say_which_frame_was_read(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = [scene(0, index, 32).image for index in range(3)]
    (tmp_path / "in").mkdir()
    drawn[0].save(tmp_path / "in" / "single.png")
    db = ["--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    assert run(["index", str(tmp_path / "in"), *db]) == 0
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "fade.gif", save_all=True, append_images=drawn[1:], duration=9)
    (tmp_path / "in" / "fade.txt").write_text("it fades in")
    assert run(["index", str(tmp_path / "in"), *db]) == 0  # the database gets the column with the first animation

    def found() -> dict[str, int | None]:
        capsys.readouterr()
        assert run(["search", "--image", str(tmp_path / "in" / "fade.gif"), *db, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["frame"] == 1
        assert not any("frame_read" in each["columns"] for each in report["results"])
        return {Path(each["path"]).name: each.get("frame") for each in report["results"]}

    assert found() == {"single.png": None, "fade.gif": 1}
    (tmp_path / "in" / "fade.txt").write_text("another caption")  # the row is written anew, but not its picture
    assert run(["index", str(tmp_path / "in"), *db]) == 0
    assert found() == {"single.png": None, "fade.gif": 1}
    (tmp_path / "in" / "fade.gif").rename(tmp_path / "in" / "moved.gif")  # its embedding is reused
    (tmp_path / "in" / "fade.txt").unlink()
    shutil.copy(tmp_path / "in" / "moved.gif", tmp_path / "in" / "fade.gif")
    assert run(["index", str(tmp_path / "in"), *db]) == 0
    assert found() == {"single.png": None, "fade.gif": 1, "moved.gif": 1}
    assert (
        run(["search", "--image", str(tmp_path / "in" / "single.png"), *db, "--where", "frame_read = 1", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert "frame" not in report
    assert {Path(each["path"]).name for each in report["results"]} == {"fade.gif", "moved.gif"}


def test_the_text_is_literal(ask) -> None:
    """Neither the syntax of prompts nor that of full-text queries has any effect."""
    assert ask("red:2 | blue:-1") != ask("red")
    assert {each["caption"] for each in ask('"flower":-1 AND', "--mode", "text")} == {"a red flower", "two red flowers"}


def test_the_table_shows_paths_from_the_current_folder(
    database: Path, micro_pack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "flower", "--mode", "text", "--db", str(database), "--pack", str(micro_pack)]
    here, absolute = str(Path("pictures") / "0.png"), str(database.parent / "pictures" / "0.png")
    for folder, shown in ((database.parent, here), (database, absolute)):
        monkeypatch.chdir(folder)
        assert run(arguments) == 0
        cells = [cell for line in capsys.readouterr().out.splitlines() for cell in line.split()]
        assert shown in cells
        assert run([*arguments, "--json"]) == 0
        assert absolute in [each["path"] for each in json.loads(capsys.readouterr().out)["results"]]


def test_a_table_and_a_contact_sheet(
    database: Path, micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--db", str(database), "--pack", str(micro_pack)]
    assert run(["search", "red", *arguments, "-k", "4", "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["score", "picture", "caption"]
    assert len(lines) == 6
    assert lines[-1] == f"contact sheet: {tmp_path / 'sheet.png'}"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 8 + 2 * (96 + 8)  # two columns of pictures that were enlarged to 96 pixels
    assert run(["search", "zebra", *arguments, "--mode", "text", "--sheet", str(tmp_path / "none.png")]) == 0
    output = capsys.readouterr()
    assert output.out == "nothing found\n"
    assert output.err == f"codebrush: nothing was found, so --sheet {tmp_path / 'none.png'} was not written\n"
    assert not (tmp_path / "none.png").exists()


def test_a_sheet_overwrites_no_picture_and_nothing_but_png(
    database: Path,
    micro_pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not by another path either; it is checked before the search."""
    monkeypatch.setattr("codebrush.search.finding.search", lambda *_, **__: pytest.fail("it was searched"))
    pictures, asked = database.parent / "pictures", tmp_path / "asked.png"
    shutil.copy(pictures / "0.png", asked)
    (tmp_path / "link").symlink_to(pictures)
    (tmp_path / "other.png").symlink_to(pictures / "1.png")
    for name in ("folder.png", "file"):
        (tmp_path / name).mkdir() if name.endswith("png") else (tmp_path / name).touch()
    before = {path: path.read_bytes() for path in [*pictures.iterdir(), asked]}
    for place, status, reason in (
        (pictures / "0.txt", 2, "must be a file that ends in .png"),
        (tmp_path / "folder.png", 2, "must be a file that ends in .png"),
        (pictures / "0.png", 2, "is one of the pictures in"),
        (tmp_path / "link" / "0.png", 2, "is one of the pictures in"),
        (tmp_path / "other.png", 2, "is one of the pictures in"),
        (asked, 2, "is the picture of --image"),
        (tmp_path / "file" / "sheet.png", 1, "name another folder with --sheet"),
    ):
        capsys.readouterr()
        command = ["search", "red", "--image", str(asked), "--db", str(database), "--pack", str(micro_pack)]
        assert run([*command, "--sheet", str(place)]) == status
        output = capsys.readouterr()
        assert reason in output.err
        assert output.err.count("\n") == 1
    assert {path: path.read_bytes() for path in [*pictures.iterdir(), asked]} == before


def test_a_sheet_replaces_an_older_one(database: Path, micro_pack: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "0.png"  # the name of a picture, but another file
    sheet.touch()
    command = ["search", "red", "--db", str(database), "--pack", str(micro_pack), "--sheet", str(sheet)]
    assert run(command) == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "there is nothing to search for"),
        ([" "], 2, "the text to search for is empty"),
        (["x", "--where", "colour = 'red'"], 2, "the columns are path, source, caption"),
        (["x", "--where", "1=1; drop"], 2, "only its beginning is a condition"),
        (["x", "--image-weight", "0.3"], 2, "--image-weight needs both a text and --image"),
        (
            ["x", "--mode", "text", "--image", "a.png"],
            2,
            "--image cannot be used with --mode text, which searches only captions",
        ),
        (["x", "-k", "0"], 2, "-k"),
        (["x", "--min-score", "2"], 2, "--min-score"),
        (
            ["x", "--mode", "hybrid", "--min-score", "0.2"],
            2,
            "--min-score is a cosine, and the scores of --mode hybrid are none",
        ),
        (["x", "--without", ""], 2, "a text for --without is empty"),
        (["--image", "none.png"], 1, "none.png: no such file"),
    ],
)
def test_misuse(
    arguments: list[str], status: int, reason: str, database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["search", *arguments, "--db", str(database), "--pack", str(micro_pack)]) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("codebrush: ")
    assert output.err.count("\n") == 1
    assert reason in output.err


def _damage_until_it_panics(database: Path, folder: Path, command: list[str], capfd) -> None:
    """Copy the database and change a byte of its word index such that LanceDB's threads panic."""
    for at in range(40, 400, 5):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(database, folder)
        (tokens,) = (folder / TABLE_FOLDER / "_indices").rglob("*_tokens.lance")
        content = bytearray(tokens.read_bytes())
        content[at] ^= 0xFF
        tokens.write_bytes(content)
        if run(command) == 1 and "panicked at" in capfd.readouterr().err:
            return
    pytest.skip("this version of LanceDB panics over none of these")


def test_damage_is_one_line_on_stderr_unless_debugging(
    database: Path,
    micro_pack: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "damaged"
    command = ["search", "flower", "--mode", "text", "--db", str(folder), "--pack", str(micro_pack)]
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    _damage_until_it_panics(database, folder, command, capfd)
    monkeypatch.delenv(DEBUG_VARIABLE)
    assert run(command) == 1
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"codebrush: {folder} is damaged (")
    assert output.err.count("\n") == 1


def test_the_database_of_another_pack_is_refused(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_micro_pack(tmp_path / "other", seed=1, name="other")
    for command in (["search", "x"], ["index", str(database.parent / "pictures")]):
        capsys.readouterr()
        assert run([*command, "--db", str(database), "--pack", str(other)]) == 1
        line = capsys.readouterr().err
        assert "was made with the CLIP of the pack 'micro'" in line
        assert "which the pack 'other'" in line


def test_no_database(tmp_path: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "x", "--db", str(tmp_path / "none"), "--pack", str(micro_pack)]) == 1
    assert "make one with codebrush index" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_whether_anything_is_near(database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--db", str(database), "--pack", str(micro_pack)]
    capsys.readouterr()
    reports = {}
    for name, given in (
        ("text", ["a red flower"]),
        ("hybrid", ["a red flower", "--mode", "hybrid", "-k", "1"]),
        ("words", ["flower", "--mode", "text"]),
        ("image", ["--image", str(database.parent / "pictures" / "3.png")]),
    ):
        assert run(["search", *given, *arguments, "--json"]) == 0
        reports[name] = json.loads(capsys.readouterr().out)
    level = reports["text"]["level"]
    assert 0 <= level <= 1
    assert reports["text"]["near"] == (level >= 0.95)
    assert (reports["hybrid"]["near"], reports["hybrid"]["level"]) == (reports["text"]["near"], level)
    for name in ("words", "image"):
        assert (reports[name]["near"], reports[name]["level"]) == (None, None)
    assert run(["search", "a red flower", *arguments]) == 0
    output = capsys.readouterr()
    doubt = Nearness(level).doubt
    assert output.err.startswith("" if doubt is None else f"codebrush: {doubt}; first come pictures whose captions")
    assert bool(output.err) == (doubt is not None)
    assert len(output.out.splitlines()) == 6, "results are never left out for it"


def test_the_least_score(ask) -> None:
    scores = [each["score"] for each in ask("a red flower")]
    kept = ask("a red flower", "--min-score", f"{(scores[1] + scores[2]) / 2:.6f}")
    assert [each["score"] for each in kept] == scores[:2]
    assert ask("a red flower", "--min-score", "1") == []


def test_a_query_that_cannot_be_read_finds_captions_alone(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = {"a red flower": "red", "一条龙 in the sky": "white", "a cat": "navy"}
    for index, (caption, colour) in enumerate(captions.items()):  # scenes are all the same to an untrained CLIP
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(caption)
    given = ["--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    assert run(["index", str(tmp_path), *given]) == 0

    def found(*arguments: str) -> tuple[list[str], str]:
        capsys.readouterr()
        assert run(["search", *arguments, *given, "--json"]) == 0
        output = capsys.readouterr()
        return [each["caption"] for each in json.loads(output.out)["results"]], output.err

    capsys.readouterr()
    assert run(["search", "龙", *given]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith('codebrush: the pack cannot read "龙", so no picture can be found by it: use words')
    assert found("龙", "--mode", "text") == (["一条龙 in the sky"], "")
    hybrid, said = found("龙", "--mode", "hybrid")
    assert hybrid == ["一条龙 in the sky"]
    assert said == 'codebrush: the pack cannot read "龙", so only captions are searched for\n'
    picture = ["--image", str(tmp_path / "2.png")]
    alone, _ = found(*picture)
    assert alone[0] == "a cat"
    both, said = found("龙", *picture)
    assert both == alone
    assert said.startswith('codebrush: the pack cannot read "龙", so only pictures like --image are searched for')
    assert found("a cat", "--without", "龙")[0] == found("a cat")[0]
    mixed, _ = found("龙", *picture, "--mode", "hybrid")
    assert set(mixed[:2]) == {"一条龙 in the sky", "a cat"}


def test_nothing_is_said_above_captions_that_were_found(
    database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.search.finding.nearness", lambda *_, **__: Nearness(0.5))
    given = ["--db", str(database), "--pack", str(micro_pack), "--mode", "hybrid"]
    capsys.readouterr()
    for query, said in (("red flower", False), ("submarine", True)):
        assert run(["search", query, *given]) == 0
        assert ("nothing is near" in capsys.readouterr().err) == said


def test_the_best_score_below_the_least_one_is_named(
    ask, database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = ask("a red flower")[0]["score"]
    monkeypatch.setattr("codebrush.search.finding.nearness", lambda *_, **__: Nearness(0.97))
    given = ["search", "a red flower", "--db", str(database), "--pack", str(micro_pack), "--min-score"]
    least = f"{best + 0.01:.2f}"
    assert run([*given, least]) == 0
    assert capsys.readouterr().out == f"nothing found: the best is {best:.4f}, below --min-score {float(least):g}\n"
    assert run([*given, least, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["results"], report["near"], report["level"]) == ([], False, 0.97)
    assert report["best_score"] == pytest.approx(best)
    assert run([*given, f"{best - 0.01:.2f}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["near"]
    assert "best_score" not in report
