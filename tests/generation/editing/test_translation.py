"""Translation by a pack's translator: its picture, its replay, and errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import PackError, UsageError
from codebrush.models.translator import Translator, TranslatorConfig
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.progress import Progress
from packs import micro_transformer, write_micro_pack


def translator(seed: int = 0) -> Translator:
    torch.manual_seed(seed)
    model = Translator(TranslatorConfig(("noto", "3d"), 8, (1, 2), 4)).eval()
    torch.nn.init.normal_(model.last_convolution.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    members: dict[str, Any] = {"transformer": micro_transformer(source_codes=True), "translator": translator()}
    members["upscaler"] = Upscaler(UpscalerConfig(width=8, blocks=1))
    return write_micro_pack(tmp_path_factory.mktemp("packs") / "translating", **members)


@pytest.fixture(scope="module")
def brush(folder: Path) -> Codebrush:
    return Codebrush.from_pretrained(folder, device="cpu")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    scene(0, 1, 48).image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_a_picture_is_changed_to_each_style(brush: Codebrush, picture: Path) -> None:
    found = [brush.translate(picture, style)[0].image for style in ("noto", "3d")]
    assert [image.size for image in found] == [(32, 32)] * 2
    assert found[0].tobytes() != found[1].tobytes()
    assert brush.translate(picture, "noto", n=1, upscale=2)[0].image.size == (64, 64)


@pytest.mark.parametrize("task", ["generate", "edit", "translate", "replay"])
def test_what_is_stopped_while_it_enlarges_stops_there(brush: Codebrush, picture: Path, task: str) -> None:
    asked: dict[str, Any] = {"n": 1, "rerank": 1, "upscale": 2}
    replayed = brush.generate("a dog", **asked)[0].manifest if task == "replay" else {}
    calls: dict[str, Callable[[Progress], Any]] = {
        "generate": lambda progress: brush.generate("a dog", progress=progress, **asked),
        "edit": lambda progress: brush.edit(picture, "a dog", progress=progress, **asked),
        "translate": lambda progress: brush.translate(picture, "noto", upscale=2, progress=progress),
        "replay": lambda progress: brush.replay(replayed, progress=progress),
    }
    at: list[float] = []
    calls[task](lambda done, total: at.append(done / total))
    assert at == sorted(at)
    assert at[-1] == 1
    drawn = [] if task == "translate" else [0.9]  # of the whole, by then
    assert at[:-1][-1:] == drawn  # and then one tile

    def stop(done: int, total: int) -> None:
        if done == total:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        calls[task](stop)


def test_it_is_replayed_unless_another_translator_is_there(brush: Codebrush, picture: Path, tmp_path: Path) -> None:
    (done,) = brush.translate(picture, "3d")
    assert brush.replay(done.manifest).image.tobytes() == done.image.tobytes()
    other = shutil.copytree(brush.pack.folder, tmp_path / "other")
    translator(9).save_pretrained(other / "translator")
    with pytest.raises(PackError, match="made by another translator"):
        Codebrush.from_pretrained(other, device="cpu").replay(done.manifest)


def test_an_option_without_effect_on_a_translator_is_refused(brush: Codebrush, picture: Path) -> None:
    for given, said in (
        ({"n": 3}, "n is for pictures that are drawn"),
        ({"seed": 1}, "seed is for pictures that are drawn"),
        ({"cfg": 2.0}, "cfg is for pictures that are drawn"),
        ({"n": 1, "cfg": 2.0}, "cfg is for pictures that are drawn"),
        ({"n": 0}, "n is for pictures that are drawn"),
        ({"temprature": 1}, "temprature is not an option"),
        ({"by": "magic"}, "a translation is by translator, codes or flow, not magic"),
    ):
        with pytest.raises(UsageError, match=said):
            brush.translate(picture, "noto", **given)  # pyright: ignore
    with pytest.raises(UsageError, match="the pack has no style 'oil': it has noto, 3d"):
        brush.translate(picture, "oil")
    with pytest.raises(PackError, match="was not trained to translate"):
        brush.translate(picture, "noto", by="codes")


def test_a_pack_without_a_code_transformer_translates(tmp_path: Path, picture: Path) -> None:
    pack = write_micro_pack(tmp_path / "bare", translator=translator())
    info = json.loads((pack / "pack.json").read_text())
    del info["members"]["transformer"]
    (pack / "pack.json").write_text(json.dumps(info))
    assert Codebrush.from_pretrained(pack, device="cpu").translate(picture, "noto")[0].image.size == (32, 32)


def test_the_command_translates(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["translate", str(picture), "--to", "noto", "--pack", str(folder), "--out", str(tmp_path)]
    assert run(given) == 0
    (made,) = tmp_path.glob("scene_noto_seed0_00.png")
    assert run(["replay", str(made), "--out", str(tmp_path / "again.png"), "--json"]) == 0
    assert '"identical": true' in capsys.readouterr().out
    assert run([*given, "--n", "2"]) == 2
    assert "n is for pictures that are drawn" in capsys.readouterr().err
