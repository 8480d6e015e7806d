"""Published weights are converted to our layout and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codebrush.conversion.convert import convert, open_model
from codebrush.conversion.load import load_clip, load_code_transformer, load_vqgan
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import PackError, UsageError
from codebrush.models.bank import Bank, BankConfig
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.bag_of_words import BagOfWordsConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.prior import Prior, PriorConfig
from codebrush.models.translator import Translator, TranslatorConfig
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.pack.members import MEMBERS
from golden_files import golden
from packs import (
    micro_captioner,
    micro_clip,
    micro_flow,
    micro_tokenizer,
    micro_transformer,
    micro_vqgan,
    write_micro_pack,
)

VISION = VisionTransformerConfig(32, 16, 64, 2, 1, 24, activation="quick_gelu")
RESNET = ModifiedResNetConfig(64, 4, (1, 2, 1, 1), 2, 24)
TEXT = TextTransformerConfig(280, 32, 64, 2, 1, 24, activation="quick_gelu")


def openai_like(**changes: Any) -> CLIP:
    torch.manual_seed(1)
    parts = {"image": VISION, "text": TEXT} | changes
    clip = CLIP.from_config(CLIPConfig(parts["image"], parts["text"])).eval()
    with torch.no_grad():
        for name, value in clip.named_parameters():
            if name != "logit_bias":
                value.add_(0.1 * torch.randn_like(value))
    return clip


def saved(clip: CLIP, folder: Path, tokenizer: bool = True) -> Path:
    clip.save_pretrained(folder)
    if tokenizer:
        micro_tokenizer().save(folder)
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("image", [VISION, RESNET])
def test_openais_layout_there_and_back(image: Any, tmp_path: Path) -> None:
    clip = openai_like(image=image)
    convert(saved(clip, tmp_path / "ours"), tmp_path / "theirs", to="openai")
    file = tmp_path / "theirs" / "clip.pt"
    assert {type(value) for value in torch.load(file, weights_only=True).values()} == {torch.Tensor}
    with pytest.warns(UserWarning, match="QuickGELU is assumed"):
        same(load_clip(file), clip)
    settings = {"transformer_heads": 1, "embed_dim": 24}
    report = convert(file, tmp_path / "again", settings, tokenizer=tmp_path / "ours")
    same(CLIP.from_pretrained(tmp_path / "again"), clip)
    assert report["layout"] == "openai"
    assert report["tokenizer"]
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "ours" / "tokenizer.json").read_bytes()


REFUSED = [
    (micro_clip(), "its text encoder is not causal", ("openai", "huggingface")),
    (openai_like(image=RESNET), "the image encoder is a ModifiedResNet", ("huggingface",)),
    (openai_like(text=BagOfWordsConfig(280, 32, 16, 24)), "the text encoder is a BagOfWords", ("huggingface",)),
    (openai_like(image=VisionTransformerConfig(32, 16, 64, 2, 1, 24, "mean")), "pools by 'mean'", ("openai",)),
    (openai_like(text=TextTransformerConfig(280, 32, 64, 2, 2, 24)), "activation is gelu", ("openai",)),
    (
        openai_like(text=TextTransformerConfig(280, 32, 64, 2, 2, 24, activation="quick_gelu")),
        "heads of its text encoder are not 64 wide",
        ("openai",),
    ),
]


@pytest.mark.parametrize(("clip", "reason", "layouts"), REFUSED)
def test_other_encoders_are_refused_by_name(clip: CLIP, reason: str, layouts: tuple[str, ...], tmp_path: Path) -> None:
    source = saved(clip, tmp_path / "ours")
    for layout in layouts:
        with pytest.raises(PackError, match=reason):
            convert(source, tmp_path / layout, to=layout)
        assert not (tmp_path / layout).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_a_bias_of_the_sigmoid_loss_is_refused(tmp_path: Path) -> None:
    clip = openai_like()
    clip.logit_bias.data.fill_(-10.0)
    with pytest.raises(PackError, match="its logits have a bias"):
        convert(saved(clip, tmp_path / "ours"), tmp_path / "theirs", to="huggingface")


def test_half_precision_is_kept_and_loses_nothing(tmp_path: Path) -> None:
    reference = golden("openai_clip_vit_fp16_a")
    with pytest.warns(UserWarning, match="no tokenizer beside"):
        convert(reference.weights, tmp_path / "ours", reference.config)
    given, kept = load_file(reference.weights), load_file(tmp_path / "ours" / "model.safetensors")
    assert kept["image_encoder.projection.weight"].dtype == given["visual.proj"].dtype == torch.float16
    assert kept["text_encoder.final_norm.weight"].dtype == given["ln_final.weight"].dtype == torch.float32
    same(CLIP.from_pretrained(tmp_path / "ours"), load_clip(reference.weights, reference.config))


def test_a_sentencepiece_tokenizer_beside_the_weights_is_named_with_the_remedy(tmp_path: Path) -> None:
    reference = golden("openai_clip_vit_fp16_a")
    place = tmp_path / "clip.safetensors"
    shutil.copy(reference.weights, place)
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e")
    with pytest.warns(UserWarning, match=r"spiece\.model is a SentencePiece tokenizer.*save_pretrained"):
        convert(place, tmp_path / "ours", reference.config)
    with pytest.raises(PackError, match=r"spiece\.model is a SentencePiece tokenizer.*save_pretrained"):
        tokenizer_of(load_clip(place, reference.config), place)


def test_a_second_stage_holds_two_models(tmp_path: Path) -> None:
    reference = golden("taming_net2net_a")
    first = convert(reference.weights, tmp_path / "vqgan", reference.config, kind="vqgan")
    second = convert(reference.weights, tmp_path / "transformer", reference.config)
    assert (first["kind"], second["kind"]) == ("vqgan", "transformer")
    same(load_vqgan(tmp_path / "vqgan"), load_vqgan(reference.weights, reference.config))
    same(load_code_transformer(tmp_path / "transformer"), open_model("transformer", tmp_path / "transformer"))
    with pytest.raises(UsageError, match="holds a code transformer, not a CLIP"):
        convert(reference.weights, tmp_path / "clip", reference.config, kind="clip")
    with pytest.raises(PackError, match="holds a transformer, not a clip"):
        load_clip(reference.weights)


def test_nothing_is_overwritten_or_left_half_written(tmp_path: Path) -> None:
    source = saved(openai_like(), tmp_path / "ours")
    with pytest.raises(UsageError, match="is already there"):
        convert(source, source, to="openai")
    with pytest.raises(UsageError, match="in this layout already"):
        convert(source, tmp_path / "new")
    with pytest.raises(UsageError, match="no layout 'tf'"):
        convert(source, tmp_path / "new", to="tf")
    locked = tmp_path / "file"
    locked.write_text("")
    with pytest.raises(PackError, match="cannot be written"):
        convert(source, locked / "new", to="openai")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "ours"]


@pytest.mark.parametrize("name", sorted(MEMBERS.keys() - {"clip", "scorer"}))  # both are CLIPs
def test_a_member_without_a_published_layout_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    models = {
        "vqgan": micro_vqgan(),
        "transformer": micro_transformer(),
        "flow": micro_flow(),
        "captioner": micro_captioner(),
        "upscaler": Upscaler(UpscalerConfig(2, 4, 1)),
        "bank": Bank(BankConfig(4, ("a cat",))),
        "prior": Prior(PriorConfig(4, 4)),
        "translator": Translator(TranslatorConfig(("flat", "round"), 8, (1, 2))),
    }
    models[name].save_pretrained(tmp_path / name)
    with pytest.raises(UsageError, match=f"only a CLIP can .* holds a {MEMBERS[name].label}$") as caught:
        convert(tmp_path / name, tmp_path / "out", to="openai")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class TestStrictness:
    """A tensor that is missing, left over or of another shape is named."""

    def changed(self, tmp_path: Path, name: str, change: Any) -> tuple[Path, dict[str, Any]]:
        reference = golden(name)
        tensors = load_file(reference.weights)
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors", reference.config

    def test_missing(self, tmp_path: Path) -> None:
        place = self.changed(tmp_path, "open_clip_vit_a", lambda t: t.pop("visual.ln_pre.bias"))
        with pytest.raises(PackError, match=r"changed.safetensors lacks the tensor visual.ln_pre.bias$"):
            load_clip(*place)

    def test_left_over(self, tmp_path: Path) -> None:
        place = self.changed(tmp_path, "open_clip_vit_a", lambda t: t.update({"visual.extra": torch.zeros(3)}))
        with pytest.raises(PackError, match=r"has the tensor visual\.extra, which this kind of model does not have"):
            load_clip(*place)

    def test_many_left_over_are_counted(self, tmp_path: Path) -> None:
        extra = {f"more.{index}": torch.zeros(1) for index in range(9)}
        place = self.changed(tmp_path, "llamagen_gpt_a", lambda t: t.update(extra))
        with pytest.raises(PackError, match=r"more.0, more.1, more.2 and 6 more"):
            load_code_transformer(*place)

    def test_another_shape(self, tmp_path: Path) -> None:
        def narrow(tensors: dict[str, torch.Tensor]) -> None:
            tensors["transformer.resblocks.1.ln_2.weight"] = torch.zeros(7)

        place = self.changed(tmp_path, "open_clip_vit_a", narrow)
        with pytest.raises(PackError, match=r"resblocks.1.ln_2.weight is 7, but should be 32: is its config right"):
            load_clip(*place)

    def test_a_config_that_says_otherwise(self) -> None:
        reference = golden("taming_net2net_a")
        wrong = json.loads(json.dumps(reference.config))
        wrong["params"]["first_stage_config"]["params"]["n_embed"] = 48
        with pytest.raises(PackError, match="its config says n_embed 48, but its tensors say 64"):
            load_vqgan(reference.weights, wrong)
        with pytest.raises(PackError, match="its config says embed_dim 7, but its tensors say 40"):
            load_clip(golden("open_clip_vit_a").weights, golden("open_clip_vit_a").config | {"embed_dim": 7})

    def test_encoders_that_cannot_be_built_are_named(self) -> None:
        reference = golden("open_clip_vit_a")
        odd = {"attentional_pool": True, **reference.config["vision_cfg"]}
        with pytest.raises(PackError, match="a tower with 'attentional_pool' cannot be built"):
            load_clip(reference.weights, reference.config | {"vision_cfg": odd})
        odd = {**reference.config["text_cfg"], "hf_model_name": "roberta-base"}
        with pytest.raises(PackError, match="a tower with 'hf_model_name' cannot be built"):
            load_clip(reference.weights, reference.config | {"text_cfg": odd})
        odd = reference.config | {"preprocess_cfg": {"resize_mode": "longest"}}
        with pytest.raises(PackError, match="resize_mode 'longest': only shortest and squash can be read"):
            load_clip(reference.weights, odd)
        with pytest.raises(PackError, match="needs its open_clip config"):
            load_clip(golden("open_clip_siglip_a").weights)

    def test_a_layout_that_is_not_known(self, tmp_path: Path) -> None:
        save_file({"conv.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
        with pytest.raises(PackError, match=r"in no known layout: its tensors are called conv.weight"):
            load_vqgan(tmp_path / "x.safetensors")


class TestFolders:
    """Which files of a folder are read."""

    def test_a_config_is_found_beside_the_weights(self, tmp_path: Path) -> None:
        reference = golden("open_clip_custom_text_a")
        shutil.copy(reference.weights, tmp_path / "open_clip_model.safetensors")
        pictures = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "resize_mode": "squash"}
        config = {"model_cfg": reference.config, "preprocess_cfg": pictures}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        clip = load_clip(tmp_path)
        assert clip.config.image_std == (0.25, 0.5, 0.5)
        assert clip.config.resize_mode == "squeeze"

    def test_a_yaml_of_the_same_name_is_found(self, tmp_path: Path) -> None:
        reference = golden("taming_net2net_a")
        shutil.copy(reference.weights, tmp_path / "last.safetensors")
        (tmp_path / "last.yaml").write_text(json.dumps({"model": reference.config}))  # JSON is YAML
        assert load_code_transformer(tmp_path / "last.safetensors").config.labels == 10
        assert load_code_transformer(tmp_path).config.labels == 10

    def test_folders_without_weights_or_with_several_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PackError, match="holds no weights"):
            load_clip(tmp_path)
        for name in ("a.pt", "b.pt"):
            torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(PackError, match=r"several checkpoints \(a.pt, b.pt\): name one"):
            load_clip(tmp_path)
        with pytest.raises(PackError, match="there is no file or folder"):
            load_clip(tmp_path / "none")
        (tmp_path / "config.yaml").write_text("- 1\n")
        with pytest.raises(PackError, match="holds no settings"):
            load_clip(golden("open_clip_vit_a").weights, tmp_path / "config.yaml")

    def test_folders_of_ours_load_by_the_same_functions(self, tmp_path: Path) -> None:
        pack = write_micro_pack(tmp_path / "pack")
        assert load_clip(pack / "clip").image_size == 32
        assert load_vqgan(pack / "vqgan").factor == 4
        assert load_code_transformer(pack / "transformer").config.grid == (8, 8)
        with pytest.raises(PackError, match="holds a vqgan, not a clip"):
            load_clip(pack / "vqgan")


def test_loaded_weights_are_frozen_until_they_are_to_be_trained() -> None:
    references = {load_clip: "open_clip_vit_a", load_vqgan: "llamagen_vq_a", load_code_transformer: "taming_net2net_a"}
    for load, name in references.items():
        reference = golden(name)
        model = load(reference.weights, reference.config)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.requires_grad for parameter in model.requires_grad_().parameters())
