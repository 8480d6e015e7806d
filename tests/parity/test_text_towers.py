"""Multilingual CLIPs of random weights in their published layouts: the same numbers and tokens as the original code."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from codebrush.conversion.convert import convert
from codebrush.conversion.load import load_clip
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import PackError, UsageError
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from golden_files import close, golden

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
TEXTS = ["一只红苹果", "สวัสดีชาวโลก แมว", "تفاحة حمراء", "A Red APPLE", "Ünïcode  naïve"]


def shaken(model: Any) -> Any:
    """`model` with no weight left at its default."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def xlm_roberta(folder: Path) -> tuple[Any, Tensor]:
    """A small XLM-RoBERTa with its tokenizer in `folder`, and the token ids of TEXTS by transformers."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0 - i / 100) for i, letter in enumerate(sorted(set("".join(TEXTS)) - {" "}))]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([*pieces, ("▁apple", -1.0), ("<mask>", 0.0)], unk_id=3))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    folder.mkdir(exist_ok=True)
    fast.save_pretrained(folder)
    config = transformers.XLMRobertaConfig(
        vocab_size=backend.get_vocab_size(), max_position_embeddings=40, type_vocab_size=1, layer_norm_eps=1e-5, **SIZES
    )
    rows = fast(TEXTS, padding="max_length", max_length=38, return_tensors="pt")["input_ids"]
    return shaken(transformers.XLMRobertaModel(config)), rows


def mean(encoder: Any, rows: Tensor, pad: int) -> Tensor:
    mask = (rows != pad).long()
    hidden = encoder(input_ids=rows, attention_mask=mask).last_hidden_state * mask[..., None]
    return hidden.sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("projection", ["linear", "mlp", "none"])
def test_open_clips_xlm_roberta(projection: str, tmp_path: Path) -> None:
    encoder, rows = xlm_roberta(tmp_path)
    reference = golden("open_clip_vit_a")
    visual = load_clip(reference.weights, reference.config)
    width = 128 if projection == "none" else visual.embed_dim
    torch.manual_seed(0)
    layers = {
        "linear": torch.nn.Linear(128, width, bias=False),
        "mlp": torch.nn.Sequential(
            torch.nn.Linear(128, (128 + width) // 2, bias=False),
            torch.nn.GELU(),
            torch.nn.Linear((128 + width) // 2, width, bias=False),
        ),
        "none": torch.nn.Identity(),
    }
    project = layers[projection]
    tensors = {name: value for name, value in load_file(reference.weights).items() if name.startswith("visual.")}
    if projection == "none":
        tensors["visual.proj"] = torch.randn(tensors["visual.proj"].shape[0], width)
    kept = {name: value for name, value in encoder.state_dict().items() if not name.startswith("pooler")}
    tensors |= {f"text.transformer.{name}": value for name, value in kept.items()}
    tensors |= {f"text.proj.{name}": value for name, value in project.state_dict().items()}
    save_file(tensors | {"logit_scale": torch.tensor(2.0)}, tmp_path / "open_clip_model.safetensors")
    text = {
        "hf_model_name": "xlm-roberta-base",
        "hf_tokenizer_name": "xlm-roberta-base",
        "hf_pooler_type": "mean_pooler",
    }
    config = {
        "model_cfg": {
            "embed_dim": width,
            "vision_cfg": reference.config["vision_cfg"],
            "text_cfg": text | {"hf_proj_type": projection},
            "quick_gelu": reference.config.get("quick_gelu", False),
        }
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = load_clip(tmp_path)
    tokens = tokenizer_of(clip, tmp_path)(TEXTS)
    assert torch.equal(tokens, rows)
    with torch.no_grad():
        close(clip.text_encoder(tokens), project(mean(encoder, rows, 1)))
        if projection != "none":
            images = torch.rand(2, 3, *clip.image_shape)
            close(clip.encode_image(images), visual.encode_image(images))
    clip.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(CLIP.from_pretrained(tmp_path / "ours").encode_text(tokens), clip.encode_text(tokens))

    config["model_cfg"]["text_cfg"]["hf_pooler_type"] = "max_pooler"
    with pytest.raises(PackError, match="a text tower with pooler_type 'max_pooler' and proj"):
        load_clip(tmp_path, config)


def test_m_clip_is_joined_to_its_clip(tmp_path: Path) -> None:
    """M-CLIP publishes a text encoder alone: an XLM-RoBERTa, averaged, and a matrix with a bias."""
    encoder, rows = xlm_roberta(tmp_path / "m-clip")
    reference = golden("hf_clip_a")
    clip = load_clip(reference.weights)
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, clip.embed_dim)
    tensors = {f"transformer.{name}": value for name, value in encoder.state_dict().items()}
    tensors |= {f"LinearTransformation.{name}": value.detach() for name, value in linear.state_dict().items()}
    torch.save(tensors, tmp_path / "m-clip" / "pytorch_model.bin")
    config = {"model_type": "M-CLIP", "modelBase": "xlm-roberta-large", "transformerDimSize": 128}
    (tmp_path / "m-clip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PackError, match=r"is a text encoder alone.*codebrush convert CLIP --text-tower"):
        load_clip(tmp_path / "m-clip")

    report = convert(reference.weights, tmp_path / "ours", text_tower=tmp_path / "m-clip")
    assert report["tokenizer"]
    joined, tokenizer = (
        CLIP.from_pretrained(tmp_path / "ours").requires_grad_(False),
        Tokenizer.from_pretrained(tmp_path / "ours"),
    )
    images = torch.rand(2, 3, *clip.image_shape)
    tokens = tokenizer(TEXTS)
    assert torch.equal(tokens, rows)
    with torch.no_grad():
        close(joined.encode_text(tokens), functional.normalize(linear(mean(encoder, rows, 1)), dim=-1))
        assert torch.equal(joined.encode_image(images), clip.encode_image(images))
        assert torch.equal(joined.log_scale, clip.log_scale)

    tensors |= {"LinearTransformation.weight": torch.ones(7, 128), "LinearTransformation.bias": torch.ones(7)}
    torch.save(tensors, tmp_path / "m-clip" / "pytorch_model.bin")
    with pytest.raises(PackError, match=f"embeds into 7 numbers, but the CLIP into {clip.embed_dim}: name the CLIP"):
        convert(reference.weights, tmp_path / "wrong", text_tower=tmp_path / "m-clip")
    with pytest.raises(PackError, match="holds no text encoder of M-CLIP"):
        convert(reference.weights, tmp_path / "wrong", text_tower=reference.weights)
    with pytest.raises(UsageError, match="only a CLIP has a text encoder"):
        convert(
            golden("llamagen_gpt_a").weights, tmp_path / "wrong", golden("llamagen_gpt_a").config, text_tower=tmp_path
        )


def test_chinese_clip(tmp_path: Path) -> None:
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": 64, "pad_token_id": 0}
    vision = SIZES | {"image_size": 32, "patch_size": 16}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    theirs = shaken(transformers.ChineseCLIPModel(config))
    theirs.save_pretrained(tmp_path)
    letters = sorted(set("一只红苹果aple"))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    clip = load_clip(tmp_path)
    tokens = tokenizer_of(clip, tmp_path)(["一只红苹果", "apple 苹果", "果"])
    bert = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    expected = bert(["一只红苹果", "apple 苹果", "果"], padding="max_length", max_length=52, return_tensors="pt")
    assert torch.equal(tokens, expected["input_ids"])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = theirs(input_ids=tokens, pixel_values=pixels, attention_mask=expected["attention_mask"])
        close(clip.encode_text(tokens), output.text_embeds)
        close(functional.normalize(clip.image_encoder(pixels), dim=-1), output.image_embeds)


def test_siglip_2s_tokenizer_reads_lower_case_as_transformers_does(tmp_path: Path) -> None:
    letters = sorted(set("".join(TEXTS).lower()) - {" "})
    vocabulary = {name: i for i, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "re", "red", "▁red", "ap"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("r", "e"), ("re", "d"), ("▁", "red"), ("a", "p")]
    theirs = transformers.Siglip2Tokenizer(vocab=vocabulary, merges=merges)
    theirs.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    expected = [theirs(text)["input_ids"] for text in [*TEXTS, "🍎 <eos>"]]
    # as published: the lower case is in the class alone, or in a flag of Gemma's
    plain = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    plain.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    plain.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    for config in (
        {"tokenizer_class": "Siglip2Tokenizer"},
        {"tokenizer_class": "GemmaTokenizer", "do_lower_case": True, "add_bos_token": False},
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | names))
        ours = Tokenizer.from_files(tmp_path, 64)
        for text, ids in zip(TEXTS, expected, strict=False):
            row = ours(text)[0].tolist()
            assert row == ids + [0] * (64 - len(ids)), text
    (tmp_path / "again").mkdir()
    ours.save(tmp_path / "again")
    assert torch.equal(Tokenizer.from_pretrained(tmp_path / "again")(TEXTS), ours(TEXTS))

    size = SIZES | {"vocab_size": len(vocabulary), "max_position_embeddings": 64, "projection_size": 128}
    config = transformers.SiglipConfig(text_config=size, vision_config=SIZES | {"image_size": 32, "patch_size": 16})
    model = shaken(transformers.SiglipModel(config))
    model.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    tokens = tokenizer_of(clip, tmp_path)(TEXTS)
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=torch.randn(1, 3, 32, 32))
        close(clip.encode_text(tokens), output.text_embeds)
