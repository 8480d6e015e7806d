"""Weights as people really have them: prefixes before every name, a trainer's other files, files without weights."""

import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codebrush.conversion.load import load_clip, load_code_transformer, load_vqgan
from codebrush.conversion.sources import weights_file
from codebrush.errors import PackError
from golden_files import golden

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605157884\n"


def tensors_of(name: str) -> dict[str, Tensor]:
    weights = golden(name).weights
    return load_file(weights / "model.safetensors" if weights.is_dir() else weights)


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, value), (_, theirs) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, theirs), name


@pytest.mark.parametrize(
    "prefix", ["model.", "clip.", "ema_model.", "module.", "_orig_mod.", "state_dict.", "model.clip_model._orig_mod."]
)
def test_a_prefix_before_every_name_is_taken_off(prefix: str, tmp_path: Path) -> None:
    reference = golden("open_clip_vit_a")
    save_file(
        {prefix + name: value for name, value in tensors_of("open_clip_vit_a").items()}, tmp_path / "a.safetensors"
    )
    same(load_clip(tmp_path / "a.safetensors", reference.config), load_clip(reference.weights, reference.config))


def test_prefixes_of_hugging_face_and_of_the_other_kinds_of_models(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(golden("hf_clip_a").weights, folder)
    save_file({f"clip.{name}": value for name, value in tensors_of("hf_clip_a").items()}, folder / "model.safetensors")
    same(load_clip(folder), load_clip(golden("hf_clip_a").weights))
    for name, load in (("taming_net2net_a", load_code_transformer), ("llamagen_gpt_a", load_code_transformer)):
        torch.save({"net": {f"gpt.{key}": value for key, value in tensors_of(name).items()}}, tmp_path / "a.pt")
        same(load(tmp_path / "a.pt", golden(name).config), load(golden(name).weights, golden(name).config))
    vqgan = {
        key: value for key, value in tensors_of("taming_net2net_a").items() if key.startswith("first_stage_model.")
    }
    save_file({f"model.{key}": value for key, value in vqgan.items()}, tmp_path / "vqgan.safetensors")
    config = golden("taming_net2net_a").config
    same(load_vqgan(tmp_path / "vqgan.safetensors", config), load_vqgan(golden("taming_net2net_a").weights, config))


def test_averaged_weights_with_their_counter(tmp_path: Path) -> None:
    reference = golden("open_clip_vit_a")
    named = {f"module.{name}": value for name, value in tensors_of("open_clip_vit_a").items()}
    torch.save(OrderedDict(n_averaged=torch.tensor(7), **named), tmp_path / "swa.pt")  # torch.optim.swa_utils
    same(load_clip(tmp_path / "swa.pt", reference.config), load_clip(reference.weights, reference.config))


def test_two_models_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    tensors = tensors_of("open_clip_vit_a")
    both = {f"{prefix}.{name}": value.clone() for prefix in ("student", "teacher") for name, value in tensors.items()}
    save_file(both, tmp_path / "a.safetensors")
    with pytest.raises(PackError, match=r"holds several models \(student\., teacher\.\): save the one to read"):
        load_clip(tmp_path / "a.safetensors")
    beside = {f"clip.{name}": value for name, value in tensors.items()} | {"aesthetic.weight": torch.ones(2)}
    save_file(beside, tmp_path / "a.safetensors")
    with pytest.raises(PackError, match=r"a model under 'clip\.' beside other tensors \(aesthetic\.weight, \.\.\.\)"):
        load_clip(tmp_path / "a.safetensors")


def test_the_folder_of_a_trainer(tmp_path: Path) -> None:
    """pytorch_model.bin with optimizer.pt, scheduler.pt, rng_state.pth and training_args.bin beside it."""
    reference = golden("hf_clip_a")
    shutil.copytree(reference.weights, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    torch.save(tensors_of("hf_clip_a"), tmp_path / "run" / "pytorch_model.bin")
    state = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save(state, tmp_path / "run" / "optimizer.pt")
    torch.save({"base_lrs": [0.1], "last_epoch": 3}, tmp_path / "run" / "scheduler.pt")
    torch.save({"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}, tmp_path / "run" / "rng_state.pth")
    transformers = pytest.importorskip("transformers")
    torch.save(object.__new__(transformers.TrainingArguments), tmp_path / "run" / "training_args.bin")
    same(load_clip(tmp_path / "run"), load_clip(reference.weights))

    (tmp_path / "run" / "pytorch_model.bin").rename(tmp_path / "run" / "weights")  # whatever it is called
    assert weights_file(tmp_path / "run").name == "weights"
    shutil.copy(tmp_path / "run" / "weights", tmp_path / "run" / "epoch_2.pth.tar")
    with pytest.raises(PackError, match=r"several checkpoints \(epoch_2\.pth\.tar, weights\): name one of them"):
        load_clip(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", POINTER, "is a git-lfs pointer, not the file itself; fetch the file (git lfs pull)"),
        ("pytorch_model.bin", b"<!DOCTYPE html><html>404", "is a web page, probably an error message"),
        ("pytorch_model.bin", b"\xef\xbb\xbf<!-- x --><html>", "is a web page, probably an error message"),
        ("clip.Q4_K.gguf", b"GGUF\x03\x00\x00\x00" + bytes(64), "is a GGUF file (llama.cpp), which is not read"),
        ("model.bin", b"GGUF\x03\x00\x00\x00" + bytes(64), "is a GGUF file (llama.cpp), which is not read"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file (Keras, TensorFlow)"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch" + bytes(64), "is an ONNX file"),
    ],
)
def test_what_is_no_weights_is_named_for_what_it_is(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a model")
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(PackError) as caught:
            load_clip(place)
        assert f"{tmp_path / name} {said}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_real_file_beside_a_pointer_is_read(tmp_path: Path) -> None:
    shutil.copytree(golden("hf_clip_a").weights, tmp_path / "a")
    torch.save(tensors_of("hf_clip_a"), tmp_path / "a" / "pytorch_model.bin")
    (tmp_path / "a" / "model.safetensors").write_bytes(POINTER)
    same(load_clip(tmp_path / "a"), load_clip(golden("hf_clip_a").weights))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", ["hf_clip_a", "open_clip_vit_a"])
def test_a_text_encoder_alone_is_named(name: str, prefix: str, tmp_path: Path) -> None:
    text = {key: value for key, value in tensors_of(name).items() if not key.startswith("vis")}
    save_file({prefix + key: value for key, value in text.items()}, tmp_path / "text.safetensors")
    with pytest.raises(PackError, match="is a text encoder alone, without an image encoder"):
        load_clip(tmp_path / "text.safetensors")


def test_siglip_2_of_variable_size_and_other_architectures_are_named(tmp_path: Path) -> None:
    tensors = tensors_of("hf_siglip_a")
    patches = tensors["vision_model.embeddings.patch_embedding.weight"]
    tensors["vision_model.embeddings.patch_embedding.weight"] = patches.flatten(1)
    save_file(tensors, tmp_path / "model.safetensors")
    for config, said in (
        ('{"model_type": "siglip2", "text_config": {}, "vision_config": {}}', "is a SigLIP 2 of variable picture size"),
        ('{"text_config": {}, "vision_config": {}}', "is a SigLIP 2 of variable picture size"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(PackError, match=said):
            load_clip(tmp_path)
    save_file(tensors_of("hf_siglip_a"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clipseg", "text_config": {}, "vision_config": {}}')
    with pytest.raises(PackError, match="is a model of the type 'clipseg', not a CLIP, SigLIP or Chinese-CLIP"):
        load_clip(tmp_path)
