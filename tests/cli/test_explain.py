"""`codebrush explain`: the heat maps and how faithful they are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene
from codebrush.understanding.faithfulness import Faithfulness
from codebrush.understanding.overlay import GAP, LINE, MARGIN, PANEL, WARNING_INK, Group, render_page
from codebrush.understanding.presence import Presence


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
    assert [word["word"] for word in report["words"]] == ["red", "circle"]
    faithfulness = report["faithfulness"]
    assert {"insertion", "deletion"} <= set(faithfulness)
    with Image.open(out) as page:  # the picture, the text and two words: one row of four panels
        assert page.format == "PNG"
        assert page.width == GAP + 4 * (PANEL + GAP) + MARGIN
        lines = 1 if report["shown"] else 2
        assert page.height == GAP + lines * LINE + GAP // 2 + 2 * LINE + PANEL + GAP


def test_a_text_that_the_picture_does_not_show_is_told_before_and_on_the_page(
    micro_pack: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "heat.png"
    arguments = ["explain", str(picture), "a red circle", "--out", str(out), "--pack", str(micro_pack), "--json"]
    told, pages = {}, {}
    for level in (1.0, 0.9, 0.25):
        monkeypatch.setattr("codebrush.understanding.explaining.presences", lambda *_, it=level: [Presence(it)])
        assert run(arguments) == 0
        output = capsys.readouterr()
        report, told[level] = json.loads(output.out), output.err
        assert (report["shown"], report["level"]) == (level >= 0.95, level)
        with Image.open(out) as page:
            pages[level] = page.height
            reds = [colour for _, colour in page.convert("RGB").getcolors(1 << 24) if colour == WARNING_INK]
            assert bool(reds) == (level < 0.95)
    assert told[1.0] == ""
    assert told[0.9].startswith('codebrush: perhaps the picture does not show "a red circle": 10% of texts about')
    assert told[0.25].startswith('codebrush: the picture hardly shows "a red circle": 75% of texts about other things')
    assert pages[0.9] == pages[0.25] == pages[1.0] + LINE


def test_the_frame_of_an_animation_is_told(
    micro_pack: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fade = tmp_path / "fade.gif"
    Image.new("RGB", (48, 48)).save(fade, save_all=True, append_images=[Image.open(picture)], duration=9)
    scores = {}
    for file in (fade, picture):
        given = ["explain", str(file), "red", "--out", str(tmp_path / "heat.png"), "--pack", str(micro_pack), "--json"]
        assert run(given) == 0
        report = json.loads(capsys.readouterr().out)
        scores[file.suffix] = (report.get("frame"), round(report["score"], 2))
    assert scores[".gif"] == (1, scores[".png"][1])
    assert scores[".png"][0] is None


def test_errors_are_one_line_and_write_nothing(
    micro_pack: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    pack = ["--pack", str(micro_pack), "--out", str(tmp_path / "heat.png")]
    assert run(["explain", str(broken), "a dog", *pack]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert run(["explain", str(picture), " ", *pack]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "heat.png").exists()


def test_the_picture_itself_is_not_written_over(
    micro_pack: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = picture.read_bytes()
    assert run(["explain", str(picture), "a red circle", "--pack", str(micro_pack), "--out", str(picture)]) == 2
    assert "is the picture itself: name another file" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_an_empty_text_or_a_folder_is_refused_before_models_load(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "heat.png"), "--pack", "no such pack"]
    assert run(["explain", str(picture), " ", *options]) == 2
    assert "the text is empty" in capsys.readouterr().err
    assert run(["explain", str(tmp_path), "a dog", *options]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_map_no_better_than_random_is_reported(
    micro_pack: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["explain", str(picture), "a circle", "--out", str(tmp_path / "heat.png"), "--pack", str(micro_pack)]
    for figures, poor in (((0.3, 0.2, 0.2, 0.2), "deletion"), ((0.2, 0.1, 0.2, 0.2), "insertion")):
        measured = Faithfulness(*figures)
        monkeypatch.setattr("codebrush.understanding.attribution.faithfulness", lambda *_, it=measured: it)
        assert run([*arguments, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["better_than_random"] == {"insertion": poor != "insertion", "deletion": poor != "deletion"}
        assert report["method"] == "occlusion"  # the gradient gave way
        assert run([*arguments, "--method", "gradient"]) == 0
        assert f"by {poor}, this map is no better than random: try --method occlusion\n" in capsys.readouterr().out
    drawn: list[Group] = []
    monkeypatch.setattr(
        "codebrush.understanding.overlay.render_page",
        lambda view, groups: (drawn.extend(groups), render_page(view, groups))[1],
    )
    assert run([*arguments, "--method", "occlusion"]) == 0
    assert "than random: do not rely on it\n" in capsys.readouterr().out
    assert drawn[0].warning.lower().endswith("by insertion, this map is no better than random: do not rely on it")
    monkeypatch.setattr("codebrush.understanding.attribution.faithfulness", lambda *_: Faithfulness(0.3, 0.1, 0.2, 0.2))
    assert run(arguments) == 0
    assert "better than random" not in capsys.readouterr().out
    assert "better than random" not in drawn[-1].warning


def test_only_the_middle_of_a_wide_picture_is_seen(
    micro_pack: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tmp_path / "wide.png"
    Image.open(picture).resize((80, 20)).save(wide)
    options = ["a circle", "--out", str(tmp_path / "heat.png"), "--pack", str(micro_pack)]
    assert run(["explain", str(wide), *options]) == 0
    assert "the encoder crops the picture: only its middle 25% was seen\n" in capsys.readouterr().out
    assert run(["explain", str(picture), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == 1
