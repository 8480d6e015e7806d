"""Which config counts for which weights, and what happens with configs and tensors that make no sense."""

import copy
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codebrush.conversion import open_clip
from codebrush.conversion.load import READERS, load_clip, load_code_transformer, own_kind
from codebrush.conversion.sources import Source
from codebrush.errors import PackError
from golden_files import golden

OPEN_CLIP = {"embed_dim": 40, "vision_cfg": {"image_size": 32, "layers": 2}, "text_cfg": {}}
GIANT = {"image_size": 256, "timm_model_name": "vit_giantopt_patch16_siglip_256", "timm_proj": "none"}
PREPARED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_center_crop": False}


@pytest.fixture
def hugging(tmp_path: Path) -> Path:
    """A CLIPModel folder whose activation is not the default one."""
    folder = tmp_path / "hugging"
    shutil.copytree(golden("hf_clip_a").weights, folder)
    config = json.loads((folder / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        config[tower]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARED))
    return folder


class TestBeside:
    """A config only counts for tensors of its own layout."""

    def test_a_file_finds_the_config_in_its_folder(self, hugging: Path) -> None:
        whole, file = load_clip(hugging), load_clip(hugging / "model.safetensors")
        assert file.config == whole.config
        assert file.config.image_mean == (0.1, 0.2, 0.3)
        assert file.config.resize_mode == "squeeze"

    def test_a_folder_of_two_layouts(self, hugging: Path) -> None:
        (hugging / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
        assert load_clip(hugging).config.text.activation == "gelu"

    def test_an_open_clip_file_finds_its_config(self, tmp_path: Path) -> None:
        reference = golden("open_clip_custom_text_a")
        shutil.copy(reference.weights, tmp_path / "open_clip_model.safetensors")
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": reference.config}))
        (tmp_path / "config.json").write_text(json.dumps({"text_config": {}, "vision_config": {}}))
        expected = load_clip(reference.weights, reference.config).config
        assert load_clip(tmp_path / "open_clip_model.safetensors").config == expected
        assert load_clip(tmp_path).config == expected

    def test_a_transformers_config_does_not_count_for_openais_tensors(self, tmp_path: Path) -> None:
        shutil.copy(golden("openai_clip_rn_a").weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"text_config": {}, "vision_config": {}}))
        with pytest.warns(UserWarning, match="QuickGELU is assumed"):
            load_clip(tmp_path)

    def test_configs_that_are_named_and_wrong(self, hugging: Path) -> None:
        with pytest.raises(PackError, match="has the tensors of huggingface, but its config is that of another layout"):
            load_clip(hugging, OPEN_CLIP)
        with pytest.raises(PackError, match="has the tensors of openai, but its config is that of another layout"):
            load_clip(golden("openai_clip_rn_a").weights, hugging / "config.json")
        with pytest.warns(UserWarning, match="QuickGELU is assumed"):  # this config says nothing about a CLIP
            load_clip(golden("openai_clip_rn_a").weights, {"seed": 1})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_clip(golden("openai_clip_rn_a").weights, {"embed_dim": 40})


@pytest.mark.parametrize("config", [None, {}, {"model": {"params": {"lr": 1}}}])
def test_a_second_stage_whose_config_does_not_describe_it(config: Any) -> None:
    with pytest.warns(UserWarning, match="16 heads and no condition are assumed; name its config"):
        load_code_transformer(golden("taming_net2net_a").weights, config)


def test_the_older_form_of_transformers_configs_counts(hugging: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = hugging / "config.json"
    config = json.loads(path.read_text())
    config["text_config_dict"] = config["text_config"] | {"hidden_act": "quick_gelu", "eos_token_id": 7}
    path.write_text(json.dumps(config))
    theirs, ours = transformers.CLIPConfig.from_pretrained(hugging), load_clip(hugging).config
    assert (ours.text.activation, ours.image.activation) == ("quick_gelu", "gelu")
    assert theirs.text_config.hidden_act == ours.text.activation
    assert theirs.text_config.eos_token_id == ours.text.end_id == 7


def test_open_clips_usual_end_token() -> None:
    reference = golden("open_clip_vit_a")
    text = reference.config["text_cfg"] | {"pool_type": "eos"}
    assert load_clip(reference.weights, reference.config | {"text_cfg": text}).config.text.end_id == 2


def test_a_bias_that_the_config_names_must_be_there(tmp_path: Path) -> None:
    reference = golden("open_clip_siglip_a")
    tensors = load_file(reference.weights)
    del tensors["logit_bias"]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(PackError, match=r"lacks the tensor logit_bias$"):
        load_clip(tmp_path / "x.safetensors", reference.config)


NAMES = {
    "clip": ["openai_clip_rn_a", "open_clip_custom_text_a", "open_clip_siglip_a", "hf_clip_a", "hf_siglip_a"],
    "vqgan": ["taming_net2net_a"],
    "transformer": ["taming_net2net_a", "llamagen_gpt_a"],
}
EVERY = [(kind, name) for kind, names in NAMES.items() for name in names]


def opened(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    reference = golden(name)
    if not reference.weights.is_dir():
        return load_file(reference.weights), reference.config
    config = json.loads((reference.weights / "config.json").read_text())
    return load_file(reference.weights / "model.safetensors"), config


def refused_or_read(kind: str, tensors: dict[str, Tensor], config: Any) -> None:
    with suppress(PackError):
        READERS[kind](Source("here", tensors, config, None, {}))


def fields(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field, value in values.items():
        yield (*path, field)
        if isinstance(value, dict):
            yield from fields(value, (*path, field))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_odd_configs_and_tensors_are_refused_or_read(kind: str, name: str) -> None:
    tensors, config = opened(name)
    for path in fields(config):
        for wrong in (None, [1]):
            changed = copy.deepcopy(config)
            place = changed
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = wrong
            refused_or_read(kind, tensors, changed)
    for changed in tensors:
        if not re.search(r"\.[1-9]\.|layer[2-4]|loss|bias|bn", changed):  # enough of each kind
            refused_or_read(kind, tensors | {changed: torch.zeros(())}, config)


NUMBERED: list[tuple[str, Callable[..., Any], str]] = [
    ("openai_clip_rn_a", load_clip, "transformer.resblocks.999999999.x"),
    ("hf_clip_a", load_clip, "text_model.encoder.layers.999999999.x"),
    ("llamagen_gpt_a", load_code_transformer, "layers.999999999.x"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "load", "strange"), NUMBERED)
def test_a_number_of_blocks_that_is_made_up(name: str, load: Any, strange: str, tmp_path: Path) -> None:
    tensors, config = opened(name)
    save_file(tensors | {strange: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(PackError, match=r"lacks the tensor|its config says"):
        load(tmp_path / "x.safetensors", config)


def test_a_config_that_asks_for_more_blocks_than_there_are() -> None:
    tensors, config = opened("hf_clip_a")
    config["text_config"]["num_hidden_layers"] = 10**9
    with pytest.raises(PackError, match="its config says num_hidden_layers 1000000000, but its tensors say 2"):
        READERS["clip"](Source("here", tensors, config, None, {}))


def test_parts_whose_shapes_do_not_match_are_named() -> None:
    tensors, config = opened("hf_clip_a")
    tensors["text_model.encoder.layers.1.self_attn.k_proj.weight"] = torch.zeros(40, 41)
    with pytest.raises(PackError, match=r"layers\.1\.self_attn\.k_proj\.weight.* do not match: is its config right"):
        READERS["clip"](Source("here", tensors, config, None, {}))


def test_a_folder_with_an_odd_config_is_not_in_our_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": []}')
    assert own_kind(tmp_path) is None


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_deeply_nested_config_is_refused_in_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"config{suffix}"
    path.write_text('{"a":' * 100_000)
    with pytest.raises(PackError, match="cannot be read"):
        load_clip(golden("openai_clip_rn_a").weights, path)
    assert own_kind(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("vit_base_patch16_siglip_224", "gelu"),
        ("vit_base_patch32_siglip_256", "gelu_tanh"),
        ("vit_large_patch16_siglip_384", "gelu"),
        ("vit_large_patch16_siglip_512", "gelu_tanh"),
        ("vit_so400m_patch14_siglip_224", "gelu"),
        ("vit_so400m_patch16_siglip_256", "gelu_tanh"),
        ("vit_giantopt_patch16_siglip_256", "gelu_tanh"),
    ],
)
def test_the_activation_of_siglips_image_towers_as_timm_has_them(name: str, activation: str) -> None:
    reference = golden("open_clip_siglip_a")
    vision = reference.config["vision_cfg"] | {"timm_model_name": name}
    clip = load_clip(reference.weights, reference.config | {"vision_cfg": vision})
    assert clip.config.image.activation == activation  # pyright: ignore[reportAttributeAccessIssue]


def test_the_heads_of_siglips_image_towers_are_known_by_width() -> None:
    tensors, config = opened("open_clip_siglip_a")
    del config["vision_cfg"]["timm_model_kwargs"]
    with pytest.raises(PackError, match="number of heads of its image tower 'vit_base_patch16_siglip_224'"):
        READERS["clip"](Source("here", tensors, config, None, {}))
    with torch.device("meta"):
        tensors["visual.trunk.patch_embed.proj.weight"] = torch.empty(1536, 3, 16, 16)
        tensors["visual.trunk.pos_embed"] = torch.empty(1, 256, 1536)
        tensors["visual.trunk.blocks.0.mlp.fc1.weight"] = torch.empty(6144, 1536)
    image: Any = open_clip.config(tensors, config | {"embed_dim": 1536, "vision_cfg": GIANT}, "here").image
    assert (image.width, image.heads) == (1536, 16)
