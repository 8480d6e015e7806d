"""`codebrush curate`: a report and shards that can be trained on."""

import inspect
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from codebrush.cli.curate import curate
from codebrush.cli.main import run
from codebrush.data.curation.options import CurationOptions
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.synthetic.shapes import scene


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight scenes of two kinds, one of them twice, and a file that is not a picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number in (*range(8), 0):
        name = f"{len(lines)}.png"
        scene(0, number, 32).image.save(folder / name)
        lines.append({"file_name": name, "caption": f"a scene with number {number}", "kind": f"kind {number % 2}"})
    (folder / "9.png").write_bytes(b"no picture")
    lines.append({"file_name": "9.png", "caption": "a broken picture", "kind": "kind 0"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_a_source_is_curated(
    pictures: Path, micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    scores = ["--keep-top", "0.5", "--pack", str(micro_pack)]
    given = ["--out", str(out), *scores, "--group", "kind", "--shares", "0.4,0.3,0.3", "--format", "parquet"]
    assert run(["curate", str(pictures), *given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["dropped"]["unreadable"]) == (10, 1)
    assert report["kept"] + sum(report["dropped"].values()) == 10
    assert report["kept"] in (4, 5)  # half of nine readable rows, two of which are duplicates
    source = open_source(out)
    assert len(source) == report["kept"] == sum(report["splits"].values())
    kinds = {(source.row(row)["kind"], source.row(row)["split"]) for row in range(len(source))}
    assert len({kind for kind, _ in kinds}) == len(kinds)  # no kind is in two splits
    for name in ("kept", "dropped"):
        assert report["sheets"][name] == str(out / f"{name}.png")
        assert Image.open(out / f"{name}.png").width > 100
    assert (out / "report.json").exists()
    assert re.search(r"^\| unreadable +\| +1 \| 10\.0 % \|$", (out / "report.md").read_text(), re.MULTILINE)


def test_dropped_rows_are_counted_on_stdout(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["curate", str(pictures), "--out", str(tmp_path / "out"), "--shares", "1,0,0"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("8 of 10 rows are kept, in 1 shard")
    assert "1 dropped: unreadable" in output.out
    assert "1 dropped: exact duplicate" in output.out
    assert output.err == ""


def test_rows_without_a_caption_are_counted(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    (pictures / "metadata.jsonl").write_text(
        "\n".join(
            json.dumps({**line, "caption": "" if number < 2 else line["caption"]}) for number, line in enumerate(lines)
        )
    )
    assert run(["curate", str(pictures), "--out", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"] == {"unreadable": 1, "no caption": 2}
    assert report["kept"] == 7


def test_an_empty_split_gives_a_warning(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["curate", str(pictures), "--out", str(tmp_path / "out"), "--caption", "a photo"]) == 0
    assert "no row is in the split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["--keep-top", "2"], 2, "--keep-top is a share"),
        (["--min-score", "0.2", "--keep-top", "0.5"], 2, "not both"),
        (["--pack", "emoji"], 2, "add --min-score or --keep-top"),
        (["--language", "xx"], 2, "the language xx is unknown; known are en, latin"),
        (["--shares", "1,2"], 2, "--shares is 1,2"),
        (["--shares", "0.5,0.5,0.5"], 2, "add up to 1"),
        (["--near", "99"], 2, "--near is 0 to 15 bits, or -1"),
        (["--phrases", "gone.txt", "--cap", "3"], 1, "gone.txt: no such file"),
        (["--group", "colour"], 1, "needs the column colour"),
        (["--min-side", "9999"], 1, "leaves none of 10 rows"),
    ],
)
def test_failures_are_one_line(
    given: list[str],
    status: int,
    message: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(["curate", str(pictures), "--out", str(out), *given]) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_is_taken_is_left_alone(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert run(["curate", str(pictures), "--out", str(tmp_path / "taken")]) == 1
    assert "already exists; name a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_emoji_keep_their_split(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Split by concept with the shares of the published set, rows go to the same splits as there."""
    given = ["--caption", "{label}", "--group", "concept", "--limit", "120", "--cap", "5"]
    out = tmp_path / "out"
    assert run(["curate", str(shared / "data" / "emoji.parquet"), "--out", str(out), *given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"].get("unreadable", 0) == 0
    before = open_source(shared / "data" / "emoji.parquet", captions=["{label}"], limit=120)
    splits = {row["id"]: row["split"] for row in map(before.row, range(120))}
    after = open_source(out)
    assert all(after.row(index)["split"] == splits[after.row(index)["id"]] for index in range(len(after)))


def test_the_flags_and_the_options_have_the_same_defaults() -> None:
    flags, options = inspect.signature(curate).parameters, CurationOptions()
    for name in (
        "min_side",
        "max_aspect",
        "near",
        "min_score",
        "keep_top",
        "cap",
        "only_phrases",
        "shard_rows",
        "seed",
    ):
        assert flags[name].default == getattr(options, name), name
    assert flags["kind"].default == options.kind
    assert tuple(map(float, flags["shares"].default.split(","))) == options.shares
    rules = [flags[name].default for name in ("min_words", "max_words", "max_chars", "language")]
    assert rules == list(vars(options.rules).values())[: len(rules)]
