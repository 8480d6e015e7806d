"""Every published kind of checkpoint gives the tensors that were saved in it; other files are refused with a reason."""

import argparse
import json
import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import assert_equal, refusal, state_dict
from lightning_fabric.utilities.data import AttributeDict
from safetensors.torch import save_file
from torch import nn

from codebrush.conversion.checkpoints import read_checkpoint


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_safetensors_file(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    save_file(state_dict(), path, {"format": "pt"})
    found = read_checkpoint(str(path))
    assert_equal(dict(sorted(found.tensors.items())), dict(sorted(state_dict().items())))
    assert found.extras == {"format": "pt"}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_file_of_torch_save(tmp_path: Path, new: bool):
    path = tmp_path / "model.safetensors"  # the name must not matter
    torch.save(state_dict(), path, _use_new_zipfile_serialization=new)
    found = read_checkpoint(path)
    assert_equal(found.tensors, state_dict())
    assert found.extras == {}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_shared_and_strided_tensors(tmp_path: Path, new: bool):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": base, "turned": base.T, "part": base[1:3, ::2], "own": nn.Parameter(base + 1)}
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert_equal(read_checkpoint(tmp_path / "a.pt").tensors, tensors)


def test_a_file_without_checksums(tmp_path: Path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equal(read_checkpoint(tmp_path / "a.pt").tensors, state_dict())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "ema", "model", "module"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_wrapped_state_dict(tmp_path: Path, wrapper: str, new: bool):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = {"epoch": 3, wrapper: state_dict(), "optimizer": optimizer, "best_loss": torch.tensor(0.5), "note": None}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    found = read_checkpoint(tmp_path / "a.pt")
    assert_equal(found.tensors, state_dict())
    assert found.extras == {"epoch": 3}


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("model", "ema"),
        ("state_dict", "ema"),
        ("state_dict", "ema_state_dict"),
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model_state_dict", "ema_model"),
    ],
)
def test_averaged_weights_come_before_those_they_average(tmp_path: Path, raw: str, averaged: str):
    other = {name: tensor + 1 for name, tensor in state_dict().items()}
    torch.save({raw: other, averaged: state_dict(), "steps": 9}, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert_equal(found.tensors, state_dict())
    assert found.extras == {"steps": 9}


def test_an_averaging_that_keeps_a_list_is_no_state_dict(tmp_path: Path):
    ema = {"decay": 0.9, "num_updates": torch.tensor(7), "shadow_params": list(state_dict().values())}
    torch.save({"state_dict": state_dict(), "ema": ema}, tmp_path / "a.pt")
    assert_equal(read_checkpoint(tmp_path / "a.pt").tensors, state_dict())


def test_a_state_dict_is_not_taken_for_a_wrapper(tmp_path: Path):
    torch.save({"model": {"weight": torch.ones(2)}, "scale": torch.ones(3), "epoch": 1}, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert_equal(found.tensors, {"model.weight": torch.ones(2), "scale": torch.ones(3)})
    assert found.extras == {"epoch": 1}


def test_nested_dicts_are_flattened(tmp_path: Path):
    content = {"model": {"vision": {"conv": {"weight": torch.ones(2)}}, "text": {"bias": torch.zeros(1), "n": 4}}}
    torch.save(content, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt").tensors
    assert_equal(found, {"vision.conv.weight": torch.ones(2), "text.bias": torch.zeros(1)})


def test_two_tensors_of_one_name_are_refused(tmp_path: Path):
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, tmp_path / "a.pt")
    assert "same name" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_prefix_that_all_names_share_is_removed(tmp_path: Path, prefix: str):
    torch.save({"model": {prefix + name: tensor for name, tensor in state_dict().items()}}, tmp_path / "a.pt")
    assert_equal(read_checkpoint(tmp_path / "a.pt").tensors, state_dict())


def test_a_prefix_of_some_names_stays(tmp_path: Path):
    torch.save({"module.weight": torch.ones(1), "bias": torch.ones(1)}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt").tensors) == ["module.weight", "bias"]


def test_numbers_and_strings_are_kept_and_others_left_out(tmp_path: Path):
    content = {
        "model": state_dict(),
        "steps": 7,
        "name": "GPT-B",
        "args": argparse.Namespace(gpt_model="GPT-B", out=pathlib.Path("somewhere")),
        "hyper_parameters": AttributeDict(lr=0.5, kinds=["a", None]),
        "dtype": torch.float16,
        "names": {"a", "b"},
        "losses": [torch.ones(1)],
        "best": np.float64(0.5),
        "history": np.arange(3),
    }
    torch.save(content, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").extras == {"steps": 7, "name": "GPT-B"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_with_an_index(tmp_path: Path, kind: str):
    tensors = state_dict()
    places = {name: f"model-{number % 2}.{kind}" for number, name in enumerate(tensors)}
    for shard in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == shard}
        save_file(part, tmp_path / shard) if kind == "safetensors" else torch.save(part, tmp_path / shard)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    found = read_checkpoint(index).tensors
    assert_equal({name: found[name] for name in tensors}, tensors)

    (tmp_path / f"model-1.{kind}").write_bytes((tmp_path / f"model-0.{kind}").read_bytes())
    assert "lacks 'stem.bias'" in refusal(index)
    cut = (tmp_path / f"model-0.{kind}").read_bytes()[:-10]
    (tmp_path / f"model-0.{kind}").write_bytes(cut)
    assert f"model-0.{kind} is damaged" in refusal(index)
    (tmp_path / f"model-0.{kind}").unlink()
    assert "missing; fetch it" in refusal(index)


@pytest.mark.parametrize(
    "shard", ["../secret.bin", "/etc/passwd", "a\\b", "..", "", "c:evil", "sub/model.bin", "a/\nb", 5, None]
)
def test_a_shard_that_is_not_beside_its_index_is_refused(tmp_path: Path, shard: object):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "secret.bin")
    index = folder / "model.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    assert "not a file beside it" in refusal(index)


def test_an_index_is_no_shard(tmp_path: Path):
    index = tmp_path / "model.index.json"
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    assert "is not a checkpoint of a known format" in refusal(index)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"<html>", "web page"),
        (b'{"error": "not found"}', "without a weight_map"),
        (b'{"weight_map": [1]}', "without a weight_map"),
        (b"{not json", "damaged"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (bytes(257) + b"ustar" + bytes(250), "tar archive"),
        (b"\x80\x04K\x01.", "not one of torch.save"),
        (b"just words", "not a checkpoint of a known format"),
        (b"PK\x03\x04 nothing more", "damaged"),
        (bytes(8) + b"{", "damaged"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_a_folder_and_a_missing_file(tmp_path: Path):
    assert "is a folder" in refusal(tmp_path)
    assert "there is no checkpoint" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [torch.ones(2)], torch.ones(2), 5, {"state_dict": {}}])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object, new: bool):
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert "holds no named tensors" in refusal(tmp_path / "a.pt")


def test_a_safetensors_file_without_tensors_is_refused(tmp_path: Path):
    save_file({}, tmp_path / "a.safetensors")
    assert "holds no named tensors" in refusal(tmp_path / "a.safetensors")


def test_an_object_that_holds_itself_is_refused(tmp_path: Path):
    content: dict[str, object] = {"w": torch.ones(1)}
    content["self"] = content
    torch.save(content, tmp_path / "a.pt")
    assert "one of its dicts appears twice" in refusal(tmp_path / "a.pt")
