"""`codebrush blend`: the ends are the two models bit for bit, the middle their mean, and what misfits is named."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codebrush.cli.main import run
from codebrush.errors import PackError, UsageError
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.fine_tuning import blend
from packs import CONTEXT, micro_captioner, micro_clip, micro_tokenizer, micro_vqgan, write_micro_pack


def write_clip(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    micro_clip().save_pretrained(folder)
    micro_tokenizer().save(folder)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_clip(tmp_path / "a", 1), write_clip(tmp_path / "b", 2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def blended(pair: tuple[Path, Path], out: Path, alpha: float) -> dict[str, torch.Tensor]:
    assert run(["blend", *map(str, pair), "--alpha", str(alpha), "--out", str(out)]) == 0
    return weights(out)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_are_the_two_models(alpha: int, pair: tuple[Path, Path], tmp_path: Path):
    found = blended(pair, tmp_path / "out", alpha)
    assert found.keys() == weights(pair[alpha]).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(pair[alpha]).items())


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_between_them_lies_the_weighted_mean(alpha: float, pair: tuple[Path, Path], tmp_path: Path):
    found, a, b = blended(pair, tmp_path / "out", alpha), *map(weights, pair)
    for name in a:
        assert torch.allclose(found[name], (1 - alpha) * a[name] + alpha * b[name], rtol=1e-6, atol=1e-8)
    assert not torch.equal(a["image_encoder.projection.weight"], b["image_encoder.projection.weight"])


def test_what_is_written_is_a_clip_with_its_tokenizer(pair: tuple[Path, Path], tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert run(["blend", *map(str, pair), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    clip, tokenizer = open_clip(out)
    parameters = sum(parameter.numel() for parameter in clip.parameters())
    assert (report["model"], report["kind"], report["alpha"], report["parameters"]) == (
        str(out),
        "clip",
        0.5,
        parameters,
    )
    assert tokenizer.backend.to_str() == micro_tokenizer().backend.to_str()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_pack_stands_for_its_clip_and_a_run_for_its_model(tmp_path: Path):
    write_micro_pack(tmp_path / "pack")
    clip, tokenizer = open_clip(tmp_path / "pack")
    with torch.no_grad():
        clip.log_scale.add_(1.0)
    clip.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save(tmp_path / "run" / "model")
    found = blended((tmp_path / "pack", tmp_path / "run"), tmp_path / "out", 0.25)
    start = CLIP.from_pretrained(tmp_path / "pack" / "clip").state_dict()
    assert found["log_scale"] == pytest.approx(start["log_scale"].item() + 0.25)
    assert all(torch.equal(found[name], start[name]) for name in start if name != "log_scale")


def test_other_models_blend_too(tmp_path: Path):
    for name in "ab":
        micro_vqgan().save_pretrained(tmp_path / name)
    found = blended((tmp_path / "a", tmp_path / "b"), tmp_path / "out", 0.5)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    name = "decoder.conv_out.weight"
    assert torch.allclose(found[name], (a[name] + b[name]) / 2)


def test_captioners_take_their_tokenizer_along(tmp_path: Path, capsys):
    for name in "ab":
        micro_captioner().save_pretrained(tmp_path / name)
        micro_tokenizer().save(tmp_path / name)
    blended((tmp_path / "a", tmp_path / "b"), tmp_path / "out", 0.5)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.backend.to_str() == micro_tokenizer().backend.to_str()
    train_bpe(["another vocabulary", "another one"], 262, context_length=CONTEXT).save(tmp_path / "b")
    capsys.readouterr()
    line = refused(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "other")
    assert "their tokenizers differ in the vocabulary" in line


def test_whole_numbers_come_from_the_second():
    a = {"count": torch.tensor(3), "value": torch.tensor([1.0, -0.0])}
    b = {"count": torch.tensor(8), "value": torch.tensor([2.0, 4.0])}
    found = blend(a, b, 0.5)
    assert (found["count"].item(), found["value"].tolist()) == (8, [1.5, 2.0])
    assert math.copysign(1, blend(a, b, 0)["value"][1]) == -1
    assert blend(a, b, 0)["count"].item() == 3


@pytest.mark.parametrize("b", [{"x": torch.zeros(3)}, {}, {"x": torch.zeros(2), "y": torch.zeros(1)}])
def test_tensors_that_do_not_fit_are_named(b: dict[str, torch.Tensor]):
    with pytest.raises(PackError, match=r"'x' is \(2,\) in one|'y' is missing in one"):
        blend({"x": torch.zeros(2)}, b, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_is_a_share(alpha: float, pair: tuple[Path, Path], tmp_path: Path, capsys):
    with pytest.raises(UsageError, match="between 0"):
        blend({}, {}, alpha)
    assert run(["blend", *map(str, pair), "--alpha", str(alpha), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def refused(capsys: pytest.CaptureFixture[str], a: Path, b: Path, out: Path, status: int = 1) -> str:
    """The one line that a blend is refused with; nothing is left behind."""
    before = sorted(out.parent.iterdir())
    assert run(["blend", str(a), str(b), "--out", str(out)]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(out.parent.iterdir()) == before
    return line


def test_other_sizes_are_named(pair: tuple[Path, Path], tmp_path: Path, capsys):
    CLIP.from_config(replace(micro_clip().config, text=replace(micro_clip().config.text, heads=4))).save_pretrained(
        pair[1]
    )
    assert "text.heads is 2 in one and 4 in the other" in refused(capsys, *pair, tmp_path / "out")


def test_other_kinds_are_named(pair: tuple[Path, Path], tmp_path: Path, capsys):
    micro_vqgan().save_pretrained(tmp_path / "vqgan")
    line = refused(capsys, pair[0], tmp_path / "vqgan", tmp_path / "out")
    assert "is a clip and" in line
    assert "a vqgan: blend two of a kind" in line


def test_other_tokenizers_are_refused(pair: tuple[Path, Path], tmp_path: Path, capsys):
    train_bpe(["another vocabulary", "another one"], 280, context_length=CONTEXT).save(pair[1])
    assert "their tokenizers differ in the vocabulary" in refused(capsys, *pair, tmp_path / "out")
    Tokenizer.from_files(pair[0], context_length=16).save(pair[1])
    assert "differ in the context_length" in refused(capsys, *pair, tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(pair: tuple[Path, Path], tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    assert "is there already: name a new folder" in refused(capsys, *pair, tmp_path / "out", status=2)


def test_what_is_no_model_is_named(pair: tuple[Path, Path], tmp_path: Path, capsys):
    assert "no folder" in refused(capsys, pair[0], tmp_path / "nowhere", tmp_path / "out")
    (pair[1] / "config.json").write_text('{"model_type": "clip"}')
    line = refused(capsys, *pair, tmp_path / "out")
    assert str(pair[1]) in line
    shutil.copy(pair[0] / "config.json", pair[1])
    (pair[1] / "model.safetensors").write_bytes(b"half")
    assert "is damaged" in refused(capsys, *pair, tmp_path / "out")
