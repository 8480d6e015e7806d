"""`codebrush convert`: what it writes opens, and what it cannot read or write is one line."""

import json
from pathlib import Path

import pytest
import torch

from codebrush.cli.main import run
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from golden_files import golden


def converted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    assert run(["convert", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def config_file(config: object, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_a_published_vqgan_becomes_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = golden("taming_vq_a")
    config = config_file(reference.config, tmp_path)
    report = converted(capsys, reference.weights, "--out", tmp_path / "ours", "--config", config)
    assert (report["kind"], report["written"]) == ("vqgan", "codebrush")
    model = VQGAN.from_pretrained(tmp_path / "ours")
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_clip_goes_to_another_layout_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = converted(capsys, golden("openai_clip_vit_fp16_a").weights, "--out", tmp_path / "ours")
    assert (ours["kind"], ours["layout"]) == ("clip", "openai")
    theirs = converted(capsys, tmp_path / "ours", "--out", tmp_path / "theirs", "--to", "huggingface")
    assert theirs["written"] == "huggingface"
    here = {file.name: file.stat().st_size for file in (tmp_path / "theirs").iterdir()}
    assert theirs["files"] == here
    assert {"config.json", "model.safetensors"} <= set(here)
    again = ["convert", str(tmp_path / "ours"), "--out", str(tmp_path / "again"), "--to", "huggingface"]
    assert run(again) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("written as huggingface: ")
    assert all(f"{name} (" in said for name in here)
    assert converted(capsys, tmp_path / "theirs", "--out", tmp_path / "back")["kind"] == "clip"
    one, other = (CLIP.from_pretrained(tmp_path / name).state_dict() for name in ("ours", "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_json_it_says_what_it_read_and_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = golden("openai_clip_vit_fp16_a").weights
    assert run(["convert", str(weights), "--out", str(tmp_path / "ours")]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{tmp_path / 'ours'}: a clip of ")
    (warning,) = shown.err.splitlines()
    assert "there is no tokenizer beside" in warning
    assert "name one with --tokenizer" in warning


@pytest.mark.parametrize(
    ("source", "options", "line", "status"),
    [
        ("vqgan", ("--to", "openai"), "only a CLIP", 2),
        ("vqgan", (), "is in this layout already", 2),
        ("clip", ("--to", "huggingface"), "its text encoder is not causal", 1),
        ("clip", ("--kind", "vqgan"), "holds a clip, not a vqgan", 1),
        ("none", (), "there is no file or folder", 1),
        ("clip", ("--kind", "upscaler"), "--kind", 2),
    ],
)
def test_what_cannot_be_done_is_one_line(
    source: str,
    options: tuple[str, ...],
    line: str,
    status: int,
    micro_pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(["convert", str(micro_pack / source), "--out", str(out), *options]) == status
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not out.exists()
