"""`codebrush caption` and `codebrush ask` on a pack with random weights."""

import json
from pathlib import Path

import pytest
from PIL import Image

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene
from packs import micro_captioner, micro_tokenizer, write_micro_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packs") / "captions"
    return str(write_micro_pack(folder, captioner=micro_captioner(), words=micro_tokenizer()))


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for index, path in enumerate(paths):
        scene(0, index, 32).image.save(path)
    return [str(path) for path in paths]


def test_captions(pack: str, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert run(["caption", *pictures, str(tmp_path / "broken.png"), "--pack", pack, "--n", "2", "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert [result["path"] for result in report["results"]] == pictures
    assert all(
        {"text", "score", "probability", "level"} == set(each) for r in report["results"] for each in r["captions"]
    )
    assert [each["path"] for each in report["skipped"]] == [str(tmp_path / "broken.png")]
    assert "codebrush: skipped " in output.err
    for result in report["results"]:
        assert result["doubtful"] == (result["captions"][0]["level"] < 1)
        assert (f"codebrush: {result['path']}: the captions " in output.err) == result["doubtful"]
    assert run(["caption", pictures[0], "--pack", pack, "--method", "greedy"]) == 0
    assert capsys.readouterr().out.startswith(pictures[0])


def test_wide_pictures_are_captioned_by_the_rule_that_is_asked_for(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste(scene(0, 3, 32).image, (64, 0))
    wide.save(tmp_path / "wide.png")
    brush = Codebrush.from_pretrained(pack, device="cpu")
    for fit in ("pad", "tiles"):
        assert run(["caption", str(tmp_path / "wide.png"), "--pack", pack, "--n", "2", "--fit", fit, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["results"][0]["captions"]
        (expected,) = brush.caption([wide], n=2, fit=fit)  # pyright: ignore
        assert [each["text"] for each in found] == [each.text for each in expected]
        assert [each["score"] for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_without_a_readable_picture_the_command_fails(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["caption", str(tmp_path / "none.png"), "--pack", pack]) == 1
    assert "none of the pictures could be read" in capsys.readouterr().err


def test_answers(pack: str, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", pictures[0], "how many red circles?", "--pack", pack, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"answer", "confidence", "guess", "reason"}
    black, drawn = Image.new("RGB", (32, 32)), scene(0, 1, 32).image
    black.save(Path(pictures[0]).with_suffix(".gif"), save_all=True, append_images=[black, drawn], duration=9)
    given = ["ask", str(Path(pictures[0]).with_suffix(".gif")), "how many red circles?", "--pack", pack, "--json"]
    assert run(given) == 0
    assert json.loads(capsys.readouterr().out)["frame"] == 1  # GIF joins the two equal frames
    assert run(["ask", pictures[0], "what is it?", "--pack", pack, "--threshold", "1"]) == 0
    assert capsys.readouterr().out.startswith("I don't know: it is not sure enough  (confidence 0.")
    assert run(["ask", pictures[0], " ", "--pack", "no such pack"]) == 2
    assert "the question is empty" in capsys.readouterr().err
    assert run(["ask", pictures[0], "what?", "--pack", pack, "--threshold", "3"]) == 2


def test_sampled_captions_use_a_random_stream_for_each_picture(
    pack: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    same = [pictures[0]] * 3
    assert run(["caption", *same, "--method", "sample", "--seed", "3", "--pack", pack, "--json"]) == 0
    texts = [tuple(each["text"] for each in one["captions"]) for one in json.loads(capsys.readouterr().out)["results"]]
    assert len(set(texts)) > 1
    brush = Codebrush.from_pretrained(pack)
    assert [tuple(each.text for each in one) for one in brush.caption(same, 1, "sample", 3)] == texts


def test_a_seed_without_sampling_is_refused(pack: str, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", pictures[0], "--seed", "7", "--pack", pack]) == 2
    assert "--seed only affects sampled captions: add --method sample" in capsys.readouterr().err
