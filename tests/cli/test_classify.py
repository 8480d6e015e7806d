"""`codebrush classify` on a pack with random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.picture_fitting import FITS
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import PromptError
from codebrush.understanding.classification import ZeroShotClassifier
from packs import write_micro_pack


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for index, path in enumerate(paths):
        scene(0, index, 32).image.save(path)
    return [str(path) for path in paths]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(["classify", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_labels_with_their_probabilities(
    micro_pack: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = answer(capsys, *pictures, "--labels", 'cat, "dog, asleep",car', "--pack", str(micro_pack), "-k", "2")
    assert [result["path"] for result in report["results"]] == pictures
    brush = Codebrush.from_pretrained(micro_pack)
    classifier = ZeroShotClassifier(brush.clip, brush.tokenizer, ["cat", "dog, asleep", "car"])
    for result, wanted in zip(report["results"], classifier.classify(pictures), strict=True):
        found = [(each["label"], each["probability"]) for each in result["labels"]]
        assert [label for label, _ in found] == [label for label, _ in wanted[:2]]
        assert [share for _, share in found] == pytest.approx([share for _, share in wanted[:2]], abs=1e-6)
    assert report["temperature"] == 1.0


def test_wide_pictures_are_read_by_the_rule_that_is_asked_for(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste(scene(0, 3, 32).image, (64, 0))
    wide.save(tmp_path / "wide.png")
    labels = ["cat", "dog", "car"]
    brush, seen = Codebrush.from_pretrained(micro_pack, device="cpu"), set()
    for fit in FITS:
        given = [str(tmp_path / "wide.png"), "--labels", ",".join(labels), "--pack", str(micro_pack), "--fit", fit]
        found = {each["label"]: each["probability"] for each in answer(capsys, *given)["results"][0]["labels"]}
        (expected,) = brush.classify([wide], labels, fit=fit)
        assert found == pytest.approx(dict(expected), abs=1e-6)
        seen.add(round(found["cat"], 6))
    assert len(seen) == 4
    assert dict(brush.classify([wide], labels)[0]) == dict(brush.classify([wide], labels, fit="crop")[0])


def test_labels_from_a_file_sentences_and_temperature(
    micro_pack: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    options = ["--labels-file", str(tmp_path / "labels.txt"), "--template", "a {}", "--pack", str(micro_pack)]
    cool, hot = (answer(capsys, pictures[0], *options, "--temperature", heat) for heat in ("0.2", "5"))
    assert cool["results"][0]["labels"][0]["probability"] > hot["results"][0]["labels"][0]["probability"]
    assert hot["templates"] == ["a {}"]
    assert run(["classify", pictures[0], *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == pictures[0]
    assert len(lines) == 3


def test_the_temperature_of_the_pack_is_the_default(
    pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = write_micro_pack(tmp_path / "pack")
    info = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps({**info, "classification": {"temperature": 3}}))
    options = [pictures[0], "--labels", "cat,dog", "--pack", str(pack)]
    own, given, other = (
        answer(capsys, *options, *more)["results"] for more in ([], ["--temperature", "3"], ["--temperature", "1"])
    )
    assert own == given != other


def test_an_unreadable_picture_is_named_and_skipped(
    micro_pack: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    options = ["--labels", "cat,dog", "--pack", str(micro_pack)]
    assert run(["classify", pictures[0], str(broken), pictures[1], *options, "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert [result["path"] for result in report["results"]] == pictures
    assert [each["path"] for each in report["skipped"]] == [str(broken)]
    assert output.err.startswith(f"codebrush: skipped {broken}: not a picture")
    assert run(["classify", str(broken), *options]) == 1
    assert "none of the pictures could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "there are no labels"),
        (["--labels", ""], "at least two"),
        (["--labels", "cat"], "the only label"),
        (["--labels", "cat,dog,,"], "one of the labels is empty"),
        (["--labels", "cat,Cat"], "are the same"),
        (["--labels", 'cat,"dog'], "cannot be read"),
        (["--labels", "cat,dog", "--labels-file", "labels.txt"], "cannot be used with --labels"),
        (["--labels-file", "nope.txt"], "nope.txt: no such file"),
        (["--labels", "cat,dog", "--template", "a photo"], "must hold {} once"),
        (["--labels", "cat,dog", "--temperature", "0"], "must be positive"),
        (["--labels", "cat,dog", "--probe", "probe.safetensors"], "cannot be used with --probe"),
    ],
)
def test_misuse_is_one_line_before_models_load(
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    assert run(["classify", pictures[0], *arguments, "--pack", "no such pack"]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_errors_for_a_folder_and_a_url_say_what_to_write(
    micro_pack: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["classify", "--labels", "cat,dog"], ["caption"]):
        assert run([*command, str(tmp_path), "--pack", "no such pack"]) == 2
        wanted = f"{tmp_path} is a folder: name the pictures in it, like {tmp_path}/*.png"
        assert capsys.readouterr().err == f"codebrush: {wanted}\n"
    for command in (["classify", "--labels", "cat,dog"], ["caption"]):
        assert run([*command, "https://example.org/a.png", "--pack", "no such pack"]) == 2
        assert "https://example.org/a.png is an address: download it first" in capsys.readouterr().err
    options = ["--labels", "cat,dog", "--pack", str(micro_pack), "--json"]
    assert run(["classify", str(tmp_path), *pictures, *options]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert [result["path"] for result in report["results"]] == pictures
    assert report["skipped"] == [{"path": str(tmp_path), "reason": wanted}]
    assert output.err == f"codebrush: skipped {wanted}\n"


def test_names_that_are_not_utf8_are_escaped(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"caf\xe9.png", b"bad\xff.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    scene(0, 0, 32).image.save(tmp_path / "0.png")
    (tmp_path / "0.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    files = [str(tmp_path / os.fsdecode(name)) for name in (b"caf\xe9.png", b"bad\xff.png")]
    report = answer(capsys, *files, "--labels", "cat,dog", "--pack", str(micro_pack))
    assert report["results"][0]["path"] == f"{tmp_path}/caf\\xe9.png"
    assert report["skipped"][0]["path"] == f"{tmp_path}/bad\\xff.png"
    assert run(["similar", files[0], files[0], "--pack", str(micro_pack), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["b"] == f"{tmp_path}/caf\\xe9.png"


def test_names_that_are_not_utf8_are_printed_escaped(micro_pack: Path, tmp_path: Path) -> None:
    """In lines of text too, on stdout and stderr, as the streams of a process of its own show."""
    scene(0, 0, 32).image.save(tmp_path / "0.png")
    (tmp_path / "0.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / os.fsdecode(b"bad\xff.png")).write_bytes(b"")
    names = [os.fsencode(tmp_path) + b"/" + name for name in (b"caf\xe9.png", b"bad\xff.png")]
    command = [sys.executable, "-m", "codebrush", "classify", *names, "--labels", "cat,dog", "--pack", str(micro_pack)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"{tmp_path}/caf\\xe9.png"
    assert done.stderr.startswith(f"codebrush: skipped {tmp_path}/bad\\xff.png: ")


def test_none_of_these(micro_pack: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    report = answer(capsys, pictures[0], "--labels", "cat", "--none", "--pack", str(micro_pack))
    found = {each["label"]: each["probability"] for each in report["results"][0]["labels"]}
    expected = dict(Codebrush.from_pretrained(micro_pack).classify([pictures[0]], ["cat"], none=True)[0])
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(found) == {"cat", "none of these"}
    assert run(["classify", pictures[0], "--labels", "cat,none of these", "--none", "--pack", str(micro_pack)]) == 2
    assert "are the same" in capsys.readouterr().err
    assert run(["classify", pictures[0], "--probe", "x.safetensors", "--none"]) == 2
    assert "--none cannot be used with --probe" in capsys.readouterr().err


def test_labels_that_cannot_be_read_are_left_out(
    micro_pack: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [pictures[0], "--pack", str(micro_pack), "--labels"]
    assert run(["classify", *given, "cat,火箭,dog", "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["unread_labels"] == ["火箭"]
    found = {each["label"]: each["probability"] for each in report["results"][0]["labels"]}
    brush = Codebrush.from_pretrained(micro_pack)
    assert found == pytest.approx(dict(brush.classify(pictures[:1], ["cat", "dog"])[0]), abs=1e-6)
    assert 'the pack cannot read the label "火箭", so it is left out' in output.err
    with pytest.warns(UserWarning, match="so they are left out"):
        (ranking,) = brush.classify(pictures[:1], ["cat", "火箭", "dog", "飞机"])
    assert {label for label, _ in ranking} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (["火箭", "飞机"], 'the pack cannot read the labels "火箭", "飞机": use words of a language'),
        (["火箭", "cat"], 'the pack cannot read the label "火箭", so "cat" is the only label left: use words'),
    ],
)
def test_nothing_readable_to_choose_between_is_refused(
    micro_pack: Path, pictures: list[str], capsys: pytest.CaptureFixture[str], labels: list[str], complaint: str
) -> None:
    assert run(["classify", pictures[0], "--labels", ",".join(labels), "--pack", str(micro_pack)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"codebrush: {complaint}")
    assert output.err.count("\n") == 1
    with pytest.raises(PromptError, match="the pack cannot read"):
        Codebrush.from_pretrained(micro_pack).classify(pictures[:1], labels)


def test_labels_that_are_not_printed_are_counted(
    micro_pack: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [f"label {number}" for number in range(12)]
    given = [pictures[0], "--labels", ",".join(labels), "--pack", str(micro_pack)]

    def lines(*more: str) -> list[str]:
        assert run(["classify", *given, *more]) == 0
        return capsys.readouterr().out.splitlines()[1:]

    found = lines()
    assert len(found) == 11
    assert found[-1] == "  2 more: --top-k 12, or --json"
    assert len(lines("--top-k", "12")) == 12
    with_none = lines("--none", "--top-k", "3")
    assert sum("none of these" in line for line in with_none) == 1
    assert sum(" label " in line for line in with_none) == 3
    assert with_none[-1] == "  9 more: --top-k 12, or --json"
    assert len(answer(capsys, *given)["results"][0]["labels"]) == 12
    cut = answer(capsys, *given, "--none", "-k", "3")["results"][0]
    assert (len(cut["labels"]), cut["more"]) == (4, 9)
