"""`codebrush probe` on drawn shapes and a pack with random weights, and `codebrush classify --probe`."""

import json
from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene
from codebrush.understanding.probe import LinearProbe
from packs import write_micro_pack

pytest.importorskip("sklearn")
COLOURS = ("red", "blue")
SPLITS = (("train", 24), ("val", 8), ("test", 8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain pictures of two colours, which even a random encoder tells apart."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("colours")
    lines = []
    for split, count in SPLITS:
        for index in range(count):
            colour, name = COLOURS[index % 2], f"{split}{index}.png"
            shade = Image.new("RGB", (32, 32), colour)
            Image.blend(shade, scene(1, index, 32).image.convert("RGB"), 0.3).save(folder / name)
            lines.append(json.dumps({"file_name": name, "colour": colour, "split": split}))
    lines.append(json.dumps({"file_name": "none.png", "colour": "red", "split": "train"}))
    lines.append(json.dumps({"file_name": "train0.png", "colour": None, "split": "train"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_probe_learns_is_measured_and_classifies(
    micro_pack: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "probe.safetensors"
    options = ["--label", "colour", "--pack", str(micro_pack)]
    assert run(["probe", str(source), *options, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] == {"train": 24, "val": 8}  # without the row without a label and the missing file
    assert [each["path"] for each in report["skipped"]] == ["none.png"]
    assert report["temperature"] == LinearProbe.load(out).temperature < 1  # sure where it is never wrong
    assert report["C_at_edge"] == (report["C"] in (0.01, 1000))
    assert report["test"]["top1"] == 1.0
    assert report["test"]["pictures"] == 8
    assert report["held_out_top1"][f"{report['C']:g}"] == max(report["held_out_top1"].values())
    assert run(["classify", str(source / "test1.png"), "--probe", str(out), "--pack", str(micro_pack), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["labels"][0]["label"] == "blue"


def test_the_seed_counts_where_there_is_no_val_split(
    micro_pack: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--label", "colour", "--split", "val", "--seed", "1", "--pack", str(micro_pack)]
    assert run(["probe", str(source), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == {"train": 8, "val": 0}
    assert run(["probe", str(source), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 labels, trained on 8 pictures\nC = 0.01, chosen on a fifth of each label: ")
    assert "that is the smallest C tried, of 0.01 to 1000: " in printed
    assert printed.endswith("the probe was not saved: give --out FILE.safetensors to keep it\n")


def test_a_probe_is_refused_with_another_clip(
    micro_pack: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "probe.safetensors", write_micro_pack(tmp_path / "other", seed=1)
    assert run(["probe", str(source), "--label", "colour", "--pack", str(micro_pack), "--out", str(out)]) == 0
    assert "test, 8 pictures: top-1 100.0%" in capsys.readouterr().out
    assert run(["classify", str(source / "test0.png"), "--probe", str(out), "--pack", str(other)]) == 1
    assert "another pack" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--label", "shape"], 1, 'the condition "--label shape" needs the column shape'),
        (["--label", "split"], 1, "two labels or more"),
        (["--label", "colour", "--split", "nine"], 1, "no split nine"),
        (["--label", "colour", "--test", "nine"], 1, "no split nine"),
        (["--label", "colour", "--val", "train"], 2, "the split that the probe is trained on"),
        (["--label", "colour", "--seed", "1"], 2, "--seed only matters if C is chosen on a fifth of the rows"),
        (["--label", "colour", "--val", "test", "--seed", "0"], 2, "it is chosen on the split test"),
        (["--label", "colour", "--out", "probe.bin"], 2, "ends in .safetensors"),
    ],
)
def test_misuse_is_one_line(
    micro_pack: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    complaint: str,
) -> None:
    assert run(["probe", str(source), *arguments, "--pack", str(micro_pack)]) == status
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_labels_come_from_captions_by_a_template(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    lines = []
    for number in range(24):
        colour = COLOURS[number % 2]
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{number}.png")
        caption = f"A photo of {'an' if number % 3 else 'a'} {colour} thing." if number < 20 else "something else"
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": caption, "kind": "wall", "tint": colour}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    options = ["--out", str(tmp_path / "probe.safetensors"), "--pack", str(micro_pack), "--json"]
    for template, labels, pictures in (
        ("a photo of a {colour} thing", ("blue", "red"), 20),
        ("{kind} of {tint}", ("wall of blue", "wall of red"), 24),
    ):
        assert run(["probe", str(tmp_path), "--label", template, *options]) == 0
        output = capsys.readouterr()
        assert json.loads(output.out)["pictures"]["train"] == pictures
        assert LinearProbe.load(tmp_path / "probe.safetensors").labels == labels
        assert ("4 pictures without a label left out" in output.err) == (pictures == 20)
    assert run(["probe", str(tmp_path), "--label", "a drawing of {colour}", *options]) == 1
    assert 'no caption reads like "a drawing of {colour}"' in capsys.readouterr().err
    assert run(["probe", str(tmp_path), "--label", "{colour} {shape}", *options]) == 1
    assert "no column colour, shape for the label" in capsys.readouterr().err
