"""`codebrush vary`, `edit` and `translate` on a pack with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest
from codebrush.data.synthetic.shapes import scene
from codebrush.files import file_sha256
from codebrush.models.bank import Bank, BankConfig
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.pack.pack import open_pack
from packs import micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packs") / "editor"
    torch.manual_seed(1)
    bank = Bank(BankConfig(24, ("one", "two", "three")))
    torch.nn.init.normal_(bank.embeddings)
    draws = micro_transformer(image_embedding=24, source_codes=True)
    write_micro_pack(folder, transformer=draws, bank=bank, upscaler=Upscaler(UpscalerConfig(width=8, blocks=1)))
    info = json.loads((folder / "pack.json").read_text())
    info["translation"] = {"text": "{style} style", "styles": ["noto", "3d"]}
    (folder / "pack.json").write_text(json.dumps(info))
    return str(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    scene(0, 1, 48).image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def report_of(given: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([*given, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("given", "size", "name"),
    [
        (["vary"], (32, 32), "scene_varied_seed0"),
        (["translate", "--to", "3d"], (32, 32), "scene_3d_seed0"),
        (["edit", "a red dog", "--strength", "0.5"], (32, 32), "scene_a-red-dog_seed0"),
        (["edit", "a red dog", "--box", "4,4,20,10"], (48, 48), "scene_a-red-dog_seed0"),
        (["edit", "--extend", "left=16,bottom=8"], (64, 56), "scene_filled_seed0"),
        (["vary", "--upscale", "2"], (64, 64), "scene_varied_seed0"),
        (["edit", "a cat", "--box", "4,4,20,10", "--upscale", "2"], (96, 96), "scene_a-cat_seed0"),
    ],
)
def test_pictures_are_made_and_replayed(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: Any, size: Any, name: str
) -> None:
    command, *rest = given
    out = tmp_path / "out"
    flags = ["--n", "2", "--rerank", "2", "--pack", pack, "--out", str(out)]
    report = report_of([command, str(picture), *rest, *flags], capsys)
    assert [Path(image["path"]).name for image in report["images"]] == [
        f"{name}_{image['index']:02d}.png" for image in report["images"]
    ]
    assert {Image.open(image["path"]).size for image in report["images"]} == {size}
    again = report_of(["replay", report["images"][0]["path"], "--out", str(tmp_path / "again.png")], capsys)
    assert again["images"][0]["identical"] is True


def test_a_picture_whose_source_has_moved_is_replayed(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = Image.new("L", (48, 48))
    mask.paste(255, (10, 10, 30, 30))
    mask.save(tmp_path / "mask.png")
    given = ["edit", str(picture), "a dog", "--mask", str(tmp_path / "mask.png"), "--n", "1", "--rerank", "1"]
    report = report_of([*given, "--pack", pack, "--out", str(tmp_path)], capsys)
    moved = [str(picture.rename(tmp_path / "a.png")), str((tmp_path / "mask.png").rename(tmp_path / "b.png"))]
    again = ["replay", report["images"][0]["path"], "--out", str(tmp_path / "again.png")]
    assert run([*again, "--source", moved[0]]) == 1
    assert "mask.png: cannot be read" in capsys.readouterr().err
    made = report_of([*again, "--source", moved[1], "--source", moved[0]], capsys)
    assert made["images"][0]["identical"] is True


def test_a_transparent_picture_is_replayed_as_it_was(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = Image.new("RGBA", (48, 48), (255, 0, 0, 128))
    layer.save(tmp_path / "layer.png")
    given = ["edit", str(tmp_path / "layer.png"), "a dog", "--box", "10,10,20,20", "--n", "1", "--rerank", "2"]
    report = report_of([*given, "--pack", pack, "--out", str(tmp_path)], capsys)
    made = Image.open(report["images"][0]["path"])
    assert made.getpixel((1, 1)) == (255, 0, 0, 128)
    again = report_of(["replay", report["images"][0]["path"], "--out", str(tmp_path / "again.png")], capsys)
    assert again["images"][0]["identical"] is True


def test_a_picture_that_cannot_be_replayed_is_one_line(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["interpolate", str(picture), str(picture), "--frames", "2", "--pack", pack, "--out", str(tmp_path)]
    report = report_of(given, capsys)
    assert run(["replay", report["images"][0]["path"]]) == 1
    assert "made by the method 'interpolate', which cannot be replayed" in capsys.readouterr().err


def test_a_mask_is_used(pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = Image.new("L", (48, 48))
    mask.paste(255, (30, 30, 48, 48))
    mask.save(tmp_path / "mask.png")
    given = ["edit", str(picture), "a dog", "--mask", str(tmp_path / "mask.png"), "--pack", pack]
    report = report_of([*given, "--out", str(tmp_path)], capsys)
    after, before = (np.asarray(Image.open(path).convert("RGB")) for path in (report["images"][0]["path"], picture))
    assert (after[:27] == before[:27]).all()
    assert (after[30:, 30:] != before[30:, 30:]).any()


def test_guidance_starts_from_the_picture(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", str(picture), "a dog", "--method", "guide", "--strength", "0.25", "--steps", "2", "--pack", pack]
    report = report_of([*command, "--out", str(tmp_path)], capsys)
    (image,) = report["images"]
    assert image["seed"] == 0
    made = read_manifest(image["path"])["options"]
    assert (made["init"], made["init_weight"], made["steps"]) == (str(picture), 15.0, 2)
    assert Image.open(image["path"]).size == (32, 32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["edit", "PICTURE", "a dog", "--box", "1,2"],
            "--box must be four whole numbers x,y,w,h, like",
        ),
        (
            ["edit", "PICTURE", "a dog", "--extend", "left"],
            "--extend must be pixels by side, like left=64",
        ),
        (
            ["edit", "PICTURE", "a dog", "--extend", "up=3"],
            "extend takes the pixels to add on left, top, right",
        ),
        (
            ["edit", "PICTURE", "a dog", "--box", "1,1,3,3", "--strength", "0.4"],
            "strength is for redrawing a whole",
        ),
        (
            ["edit", "PICTURE", "a dog", "--method", "guide", "--box", "1,1,3,3"],
            "--box cannot be used with --method",
        ),
        (["edit", "PICTURE", "a dog", "--method", "guide", "--strength", "2"], "strength must be above 0"),
        (["translate", "PICTURE", "--to", "oil"], "the pack has no style 'oil': it has noto, 3d"),
        (["vary", "gone.png"], "gone.png"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    filled = [str(picture) if part == "PICTURE" else part for part in given]
    assert run([*filled, "--pack", pack, "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_frames_between_pictures_are_files_or_a_video(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["interpolate", "a red dog", str(picture), "--frames", "3", "--pack", pack]
    report = report_of([*given, "--out", str(tmp_path / "way")], capsys)
    paths = [Path(image["path"]).name for image in report["images"]]
    assert paths == [f"a-red-dog_scene_seed0_{number:04d}.png" for number in range(3)]
    made = read_manifest(tmp_path / "way" / paths[1])
    opened = open_pack(pack)
    assert (made["pack"]["name"], made["pack"]["hash"]) == (opened.name, opened.hash)
    assert (made["index"], made["files"]) == (1, {str(picture): file_sha256(picture)})
    assert "unread_words" not in report
    report = report_of([*given, "--video", str(tmp_path / "way.gif")], capsys)
    assert Image.open(report["video"]).n_frames == 3  # pyright: ignore
    for video, place in (("gif", "film.gif"), ("way.gif", "films/way.gif")):
        report = report_of([*given, "--video", video, "--out", str(tmp_path / "films")], capsys)
        assert report["video"].endswith(place)
        assert Path(report["video"]).parent == tmp_path / "films"
        assert Path(report["video"]).is_file()
    assert run(["interpolate", "a dog", "--pack", pack, "--out", str(tmp_path)]) == 2
    assert "give at least two prompts" in capsys.readouterr().err


def test_words_of_an_interpolation_that_cannot_be_read_are_named(
    pack: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["interpolate", "a red dog", "a 苹果", str(picture), "--frames", "3", "--pack", pack]
    assert run([*given, "--out", str(tmp_path), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["unread_words"] == ["苹果"]
    assert output.err.count('the pack cannot read "苹果"') == 1


def test_retrieval_draws_from_known_pictures(pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "a red dog", "-n", "1", "--rerank", "1", "--pack", pack, "--out", str(tmp_path / "out")]
    report = report_of([*given, "--method", "retrieve", "--neighbours", "2"], capsys)
    manifest = read_manifest(report["images"][0]["path"])
    assert manifest["method"] == "retrieve"
    assert len(manifest["retrieval"]["found"]) == 2
    again = report_of(["replay", report["images"][0]["path"], "--out", str(tmp_path / "again.png")], capsys)
    assert again["images"][0]["identical"] is True

    index = tmp_path / "pictures"
    index.mkdir()
    for number in range(3):
        scene(0, number, 32).image.save(index / f"{number}.png")
    assert run(["index", str(index), "--db", str(tmp_path / "db"), "--pack", pack]) == 0
    capsys.readouterr()
    report = report_of([*given, "--method", "retrieve", "--bank", str(tmp_path / "db")], capsys)
    found = read_manifest(report["images"][0]["path"])["retrieval"]["found"]
    assert {Path(each["name"]).name for each in found} == {"0.png", "1.png", "2.png"}
    assert run([*given, "--neighbours", "2"]) == 2
    assert "--neighbours is an option of retrieval: add --method retrieve" in capsys.readouterr().err
    assert run([*given, "--method", "retrieve", "--prior", "mlp"]) == 1
    assert "has no learned prior" in capsys.readouterr().err
