"""`codebrush upscale` and `codebrush generate --upscale` on a pack with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import decode_image, read_manifest, save_png
from codebrush.data.synthetic.shapes import scene
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from packs import write_micro_pack

SHORT = ("--method", "guide", "--steps", 2, "--show-every", 2, "--cutouts", 2)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(5)
    model = Upscaler(UpscalerConfig(2, 8, 1))
    nn.init.normal_(model.last_layer, std=0.05)
    return str(write_micro_pack(tmp_path_factory.mktemp("packs") / "large", upscaler=model))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def same(one: Path | str, other: Path | str) -> bool:
    return decode_image(one).tobytes() == decode_image(other).tobytes()


def test_pictures_are_enlarged(pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene(0, 0, 32).image.save(tmp_path / "a.jpg")
    scene(0, 1, 32).image.convert("RGBA").resize((7, 3)).save(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "new" / "folder"
    given = [tmp_path / name for name in ("a.jpg", "broken.png", "b.png")]
    assert run(["upscale", *map(str, given), "--pack", pack, "--out", str(out), "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert set(report) == {"images", "skipped", "seconds"}
    assert report["images"] == [
        {"path": str(out / "a_x2.png"), "source": str(given[0]), "size": [64, 64]},
        {"path": str(out / "b_x2.png"), "source": str(given[2]), "size": [14, 6]},
    ]
    assert [each["path"] for each in report["skipped"]] == [str(given[1])]
    assert output.err.startswith(f"codebrush: skipped {given[1]}: not a picture")
    assert Image.open(out / "b_x2.png").mode == "RGBA"
    manifest = read_manifest(out / "a_x2.png")
    assert (manifest["method"], manifest["source"], manifest["size"]) == ("upscale", "a.jpg", [64, 64])
    assert sorted(path.name for path in out.iterdir()) == ["a_x2.png", "b_x2.png"]
    (again,) = run_json(capsys, "upscale", given[0], "--scale", 4, "--pack", pack, "--out", out)["images"]
    assert (Path(again["path"]).name, again["size"]) == ("a_x4.png", [128, 128])
    assert run(["upscale", str(given[0]), "--pack", pack, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'a_x2-2.png'}  (64 x 64)\n"
    assert same(out / "a_x2.png", out / "a_x2-2.png")
    assert run(["replay", str(out / "a_x2.png"), "--pack", pack]) == 1
    error = capsys.readouterr().err
    assert "enlarged from a.jpg, which does not say how it was made, so it cannot be replayed" in error
    assert error.endswith("codebrush upscale a.jpg --scale 2\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("options", [(), SHORT])
def test_what_is_generated_is_enlarged_and_replayed(
    pack: str, options: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", "a dog", "--n", 2, "--pack", pack, *options)
    report = run_json(capsys, *command, "--out", tmp_path / "large", "--upscale", 2)
    plain = run_json(capsys, *command, "--out", tmp_path / "plain")
    for large, drawn in zip(report["images"], plain["images"], strict=True):
        assert Image.open(large["path"]).size == (64, 64)
        manifest, before = read_manifest(large["path"]), read_manifest(drawn["path"])
        assert manifest.pop("size") == [64, 64]
        assert [step["scale"] for step in manifest.pop("upscaled")] == [2]
        assert manifest == {name: value for name, value in before.items() if name != "size"}
        assert large["clip_score"] == drawn["clip_score"]  # of what was drawn
        (enlarged,) = run_json(capsys, "upscale", drawn["path"], "--pack", pack, "--out", tmp_path / "after")["images"]
        assert same(enlarged["path"], large["path"])
        assert read_manifest(enlarged["path"]) == read_manifest(large["path"])
        assert (enlarged["seed"], enlarged["index"]) == (large["seed"], large["index"])
        (again,) = run_json(capsys, "replay", large["path"], "--out", tmp_path / "again.png")["images"]
        assert again["identical"]
        assert read_manifest(again["path"]) == read_manifest(large["path"])
    kept = {path.name for path in (tmp_path / "large").glob("*.png")} - {
        Path(each["path"]).name for each in report["images"]
    }
    assert kept == ({"picture_00.png", "picture_01.png"} if options else {"a-dog_seed0_sheet.png"})


def test_a_resumed_guided_run_can_be_enlarged(pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    run_json(capsys, "generate", "a dog", "--pack", pack, *SHORT, "--out", folder)
    (image,) = run_json(capsys, "generate", "--resume", folder, "--upscale", 4)["images"]
    assert Path(image["path"]) == folder / "picture_00_x4.png"
    assert Image.open(image["path"]).size == (128, 128)


def test_a_picture_enlarged_twice_is_drawn_again(pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (drawn,) = Codebrush.from_pretrained(pack).generate("a dog", n=1, rerank=1, upscale=2)
    save_png(drawn.image, tmp_path / "once.png", drawn.manifest)
    (twice,) = run_json(capsys, "upscale", tmp_path / "once.png", "--pack", pack, "--out", tmp_path)["images"]
    assert twice["size"] == [128, 128]
    assert run_json(capsys, "replay", twice["path"], "--out", tmp_path / "x.png")["images"][0]["identical"]


def test_python(pack: str) -> None:
    brush = Codebrush.from_pretrained(pack)
    pictures = [scene(0, index, 32).image for index in range(2)]
    assert [each.size for each in brush.upscale(pictures)] == [(64, 64)] * 2
    (one,) = brush.upscale(pictures[0], scale=4)
    assert one.size == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["upscale"], 2, "Missing argument"),
        (["upscale", "."], 2, ". is a folder: name the pictures in it, like *.png"),
        (["upscale", "none.png"], 1, "none of the pictures could be read"),
        (["upscale", "large.png", "--scale", "4"], 1, "6000 x 1000 would become 24000 x 4000, over the limit"),
        (["upscale", "large.png", "--scale", "3"], 2, "--scale"),
        (["generate", "a dog", "--upscale", "3"], 2, "--upscale"),
        (["replay", "large.png"], 1, "does not say how it was made"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    pack: str,
    arguments: list[str],
    status: int,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (6000, 1000)).save("large.png")
    assert run([*arguments, "--pack", pack]) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert named in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["large.png"]


def test_a_pack_without_upscaler_is_refused_at_once(
    micro_pack: Path, pack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scene(0, 0, 32).image.save("a.png")
    for arguments in (["upscale", "a.png"], ["generate", "a dog", "--upscale", "2"], ["generate", "a dog", *SHORT]):
        more = ["--upscale", "2"] if "guide" in arguments else []
        assert run([*map(str, arguments), *more, "--pack", str(micro_pack)]) == 1
        assert "the pack 'micro' has no upscaler: train one with" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    run_json(capsys, "generate", "a dog", "--n", 1, "--rerank", 1, "--upscale", 2, "--pack", pack, "--out", "made")
    drawn = next(Path("made").glob("*_00.png"))
    assert run(["replay", str(drawn), "--pack", str(micro_pack)]) == 1
    assert "that the pack 'micro' does not have" in capsys.readouterr().err
