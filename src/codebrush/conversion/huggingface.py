"""CLIPModel, SiglipModel and ChineseCLIPModel of Hugging Face: rules for their tensors, and their config.json."""

from collections.abc import Mapping
from typing import Any

from codebrush.conversion import text_towers
from codebrush.conversion.state_dict_rules import Rule, Tensors, check_config, count, prefixed
from codebrush.errors import PackError
from codebrush.models.clip import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.transformer import Activation

IGNORED = r".*\.position_ids"  # buffers in older files
PICTURES = "preprocessor_config.json"
OLD_END = 2  # the wrong eos_token_id of older configs; with it transformers pools at the largest token id instead
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# Default values of the fields that a config.json may leave out.
CLIP_TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
CLIP_TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 77, "pad_token_id": 1, "eos_token_id": 49407}
CLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_VISION |= {"image_size": 224, "patch_size": 32}
CLIP_BOTH = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
SIGLIP_TEXT = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
SIGLIP_TEXT |= {"num_attention_heads": 12, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 49407}
SIGLIP_VISION = CLIP_VISION | {"patch_size": 16}
SIGLIP_BOTH = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

BLOCK = [
    Rule(r"(\d+)\.attention_norm\.(.+)", r"\1.layer_norm1.\2"),
    Rule(r"(\d+)\.attention\.qkv\.(.+)", tuple(rf"\1.self_attn.{part}_proj.\2" for part in "qkv")),
    Rule(r"(\d+)\.attention\.out\.(.+)", r"\1.self_attn.out_proj.\2"),
    Rule(r"(\d+)\.mlp_norm\.(.+)", r"\1.layer_norm2.\2"),
    Rule(r"(\d+)\.mlp\.up\.(.+)", r"\1.mlp.fc1.\2"),
    Rule(r"(\d+)\.mlp\.down\.(.+)", r"\1.mlp.fc2.\2"),
]
TEXT = [
    Rule(r"token_embedding\.weight", "embeddings.token_embedding.weight"),
    Rule(r"position_embedding", "embeddings.position_embedding.weight"),
    *prefixed(BLOCK, "transformer.blocks.", "encoder.layers."),
    Rule(r"final_norm\.(.+)", r"final_layer_norm.\1"),
]
VISION = [
    Rule(r"patch_embedding\.(.+)", r"embeddings.patch_embedding.\1"),
    Rule(r"class_embedding", "embeddings.class_embedding"),
    Rule(r"position_embedding", "embeddings.position_embedding.weight"),
    Rule(r"input_norm\.(.+)", r"pre_layrnorm.\1"),
    *prefixed(BLOCK, "transformer.blocks.", "encoder.layers."),
    Rule(r"final_norm\.(.+)", r"post_layernorm.\1"),
    Rule(r"pool\.query", "head.probe"),
    Rule(r"pool\.qkv\.(.+)", r"head.attention.in_proj_\1"),
    Rule(r"pool\.out\.(.+)", r"head.attention.out_proj.\1"),
    Rule(r"pool\.norm\.(.+)", r"head.layernorm.\1"),
    Rule(r"pool\.mlp\.up\.(.+)", r"head.mlp.fc1.\1"),
    Rule(r"pool\.mlp\.down\.(.+)", r"head.mlp.fc2.\1"),
]
TOWERS = [
    Rule("log_scale", "logit_scale"),
    *prefixed(TEXT, "text_encoder.", "text_model."),
    *prefixed(VISION, "image_encoder.", "vision_model."),
]
CLIP_RULES = [
    *TOWERS,
    Rule("logit_bias", ()),
    Rule(r"text_encoder\.projection\.weight", "text_projection.weight"),
    Rule(r"image_encoder\.projection\.weight", "visual_projection.weight"),
]
SIGLIP_RULES = [
    *TOWERS,
    Rule("logit_bias", "logit_bias"),
    Rule(r"text_encoder\.projection\.(.+)", r"text_model.head.\1"),
]


def is_state_dict(tensors: Tensors) -> bool:
    """Whether a state dict has the tensor names of this layout."""
    return "vision_model.embeddings.patch_embedding.weight" in tensors


def is_config(settings: Mapping[str, Any]) -> bool:
    """Whether a config comes from transformers: it has a section for each encoder."""
    return any(f"{tower}_config{older}" in settings for tower in ("text", "vision") for older in ("", "_dict"))


def is_siglip(tensors: Tensors) -> bool:
    """Whether the state dict is that of a SiglipModel and not of a CLIPModel."""
    return "vision_model.head.probe" in tensors


def rules(tensors: Tensors) -> list[Rule]:
    """The rules for a state dict."""
    return text_towers.rules(tensors) + (SIGLIP_RULES if is_siglip(tensors) else CLIP_RULES)


def config(tensors: Tensors, settings: Mapping[str, Any], pictures: Mapping[str, Any] | None, place: str) -> CLIPConfig:
    """The CLIP that a config.json describes; `pictures` is the content of its preprocessor_config.json.

    Raises:
        PackError: if the config cannot be read or contradicts the tensors.
    """
    siglip, pictures = is_siglip(tensors), pictures or {}
    try:
        make = _siglip if siglip else _clip
        vision, text_values = _tower(settings, "vision_config"), _tower(settings, "text_config")
        image, text = make(vision, {} if text_towers.is_chinese_clip(tensors) else text_values, settings)
        if text_towers.is_chinese_clip(tensors):
            text = text_towers.chinese_config(tensors, text_values, image.embed_dim)
    except (KeyError, TypeError, ValueError) as error:
        raise PackError(f"{place}: its config.json cannot be read: {error}") from error
    for tower, values in (("vision", vision), ("text", text_values)):
        check_config(values, {"num_hidden_layers": count(tensors, rf"{tower}_model\.encoder\.layers?\.(\d+)\.")}, place)
    half = (0.5, 0.5, 0.5)
    return CLIPConfig(
        image,
        text,
        image_mean=tuple(pictures.get("image_mean", half if siglip else OPENAI_MEAN)),
        image_std=tuple(pictures.get("image_std", half if siglip else OPENAI_STD)),
        resize_mode="crop" if pictures.get("do_center_crop", not siglip) else "squeeze",
    )


def _tower(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The config of one encoder. As in transformers, the older form (NAME_dict) wins if both are there."""
    older = settings.get(f"{name}_dict")
    return (settings.get(name) if older is None else older) or {}


def _clip(vision: Mapping, text: Mapping, both: Mapping) -> tuple[VisionTransformerConfig, TextTransformerConfig]:
    embed_dim = both.get("projection_dim", 512)  # transformers ignores the one in each encoder's section
    vision, text = CLIP_BOTH | CLIP_VISION | {**vision}, CLIP_BOTH | CLIP_TEXT | {**text}
    pooling = "argmax" if text["eos_token_id"] == OLD_END else "end"
    return (
        VisionTransformerConfig(**_vision(vision), embed_dim=embed_dim),
        TextTransformerConfig(**_text(text), embed_dim=embed_dim, pooling=pooling),
    )


def _siglip(vision: Mapping, text: Mapping, _: Mapping) -> tuple[VisionTransformerConfig, TextTransformerConfig]:
    vision, text = SIGLIP_BOTH | SIGLIP_VISION | {**vision}, SIGLIP_BOTH | SIGLIP_TEXT | {**text}
    sizes = _vision(vision)
    image_encoder = VisionTransformerConfig(
        **sizes,
        embed_dim=sizes["width"],
        pooling="attention",
        input_norm=False,
        patch_bias=True,
        projection=False,
    )
    text_encoder = TextTransformerConfig(
        **_text(text),
        embed_dim=text.get("projection_size", text["hidden_size"]),
        causal=False,
        pooling="last",
        mask_padding=False,
        projection_bias=True,
    )
    return image_encoder, text_encoder


def _trunk(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"hidden_act '{values['hidden_act']}' is not one of {', '.join(ACTIVATIONS)}")
    width, inner = values["hidden_size"], values["intermediate_size"]
    return {
        "width": width,
        "layers": values["num_hidden_layers"],
        "heads": values["num_attention_heads"],
        "hidden": 0 if inner == 4 * width else inner,
        "activation": ACTIVATIONS[values["hidden_act"]],
        "norm_epsilon": values["layer_norm_eps"],
    }


def _vision(values: Mapping[str, Any]) -> dict[str, Any]:
    return _trunk(values) | {"image_size": values["image_size"], "patch_size": values["patch_size"]}


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    return _trunk(values) | {
        "vocab_size": values["vocab_size"],
        "context_length": values["max_position_embeddings"],
        "pad_id": values["pad_token_id"],
        "end_id": values["eos_token_id"],
    }
