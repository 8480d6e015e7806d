"""open_clip's checkpoints: rules for their tensors, and their config (open_clip_config.json or its model_cfg).

Its encoders use OpenAI's tensor names, with a `text.` prefix in newer files; SigLIP's image encoder comes from timm and
uses timm's names. Options that our encoders do not have are refused by name.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from codebrush.conversion import openai, text_towers
from codebrush.conversion.state_dict_rules import Rule, Tensors, check_config, count, prefixed
from codebrush.errors import PackError
from codebrush.models.clip import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from codebrush.models.encoders.image_encoder import ImageEncoderConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig

IGNORED = openai.IGNORED + r"|text\.transformer\..+\.position_ids"
TIMM_EPSILON = 1e-6
TIMM_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # heads of SigLIP's image encoders, by their width
TIMM_TANH = ("base_patch32_siglip", "large_patch16_siglip_512", "so400m_patch16_siglip", "giantopt_patch16_siglip")
RESIZE_MODES: dict[str, Literal["crop", "squeeze"]] = {
    "shortest": "crop",
    "squash": "squeeze",
}  # its names of what we read -> ours
USUAL_END = 2  # the end token if a config names none
VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "ls_init_value", "pool_type"}
VISION_KEYS |= {"final_ln_after_pool", "no_ln_pre", "patch_dropout", "act_kwargs", "norm_kwargs", "output_tokens"}
TIMM_KEYS = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_model_kwargs"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "pool_type"}
TEXT_KEYS |= {"no_causal_mask", "proj_bias", "proj_type", "pad_id", "eos_id", "norm_kwargs", "act_kwargs"}
TOKENIZER_KEYS = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}  # they change no tensor

TIMM = [
    Rule(r"patch_embedding\.(.+)", r"patch_embed.proj.\1"),
    Rule(r"position_embedding", "pos_embed"),
    Rule(r"transformer\.blocks\.(\d+)\.attention_norm\.(.+)", r"blocks.\1.norm1.\2"),
    Rule(r"transformer\.blocks\.(\d+)\.attention\.qkv\.(.+)", r"blocks.\1.attn.qkv.\2"),
    Rule(r"transformer\.blocks\.(\d+)\.attention\.out\.(.+)", r"blocks.\1.attn.proj.\2"),
    Rule(r"transformer\.blocks\.(\d+)\.mlp_norm\.(.+)", r"blocks.\1.norm2.\2"),
    Rule(r"transformer\.blocks\.(\d+)\.mlp\.up\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    Rule(r"transformer\.blocks\.(\d+)\.mlp\.down\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    Rule(r"final_norm\.(.+)", r"norm.\1"),
    Rule(r"pool\.query", "attn_pool.latent"),
    Rule(r"pool\.qkv\.(.+)", (r"attn_pool.q.\1", r"attn_pool.kv.\1")),
    Rule(r"pool\.out\.(.+)", r"attn_pool.proj.\1"),
    Rule(r"pool\.norm\.(.+)", r"attn_pool.norm.\1"),
    Rule(r"pool\.mlp\.up\.(.+)", r"attn_pool.mlp.fc1.\1"),
    Rule(r"pool\.mlp\.down\.(.+)", r"attn_pool.mlp.fc2.\1"),
]


def rules(tensors: Tensors) -> list[Rule]:
    """The rules for a state dict: OpenAI's names, and timm's for an image encoder of timm."""
    timm = prefixed(TIMM, "image_encoder.", "visual.trunk.") if is_timm(tensors) else []
    return timm + text_towers.rules(tensors) + openai.rules(tensors)


def is_timm(tensors: Tensors) -> bool:
    """Whether the image encoder has timm's tensor names."""
    return any(name.startswith("visual.trunk.") for name in tensors)


def config(tensors: Tensors, settings: Mapping[str, Any], place: str) -> CLIPConfig:
    """The CLIP that `settings` (a `model_cfg`, or the content of a file that holds one) and the tensors describe.

    Raises:
        PackError: if the config has an option that our encoders do not have, or contradicts the tensors.
    """
    model = settings.get("model_cfg", settings)
    pictures = settings.get("preprocess_cfg") or {}
    try:
        vision, text_values = dict(model["vision_cfg"]), dict(model["text_cfg"])
        quick = "quick_gelu" if model.get("quick_gelu") else "gelu"
        read = _timm if is_timm(tensors) else _vision
        image = read(tensors, vision, quick, place)
        if text_towers.is_open_clip(tensors):
            _refuse_unknown(text_values, text_towers.OPEN_CLIP_KEYS | {"context_length"} | TOKENIZER_KEYS, place)
            text = text_towers.open_clip_config(tensors, text_values, image.embed_dim, place)
        else:
            text = _text(tensors, text_values, quick, place)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PackError(f"{place}: its open_clip config or tensors cannot be read ({reason})") from error
    if model.get("init_logit_bias") is not None and "logit_bias" not in tensors:
        raise PackError(f"{place} lacks the tensor logit_bias")
    image = _of_size(image, vision.get("image_size"), tensors, place)
    check_config(model, {"embed_dim": image.embed_dim}, place)
    resize = pictures.get("resize_mode", "squash" if is_timm(tensors) else "shortest")
    if resize not in RESIZE_MODES:
        raise PackError(
            f"{place}: its config says resize_mode {resize!r}: only {' and '.join(RESIZE_MODES)} can be read"
        )
    half = (0.5, 0.5, 0.5) if is_timm(tensors) else None
    return CLIPConfig(
        image,
        text,
        image_mean=tuple(pictures.get("mean", half or OPENAI_MEAN)),
        image_std=tuple(pictures.get("std", half or OPENAI_STD)),
        resize_mode=RESIZE_MODES[resize],
    )


def _of_size(image: ImageEncoderConfig, size: Any, tensors: Tensors, place: str) -> ImageEncoderConfig:
    """`image` with the size in pixels that the config gives, a side or [height, width]; None: that of the tensors."""
    if isinstance(size, list | tuple) and len(size) == 2:
        size = size[0] if size[0] == size[1] else tuple(size)
    sides = size if isinstance(size, tuple) else (size,)
    whole = all(isinstance(side, int) for side in sides)
    if size is None or (size == image.image_size and not isinstance(image, VisionTransformerConfig)):
        return image
    if not (whole and isinstance(image, VisionTransformerConfig)):
        raise PackError(f"{place}: its config says image_size {size}, but its tensors say {image.image_size}")
    name = "visual.trunk.pos_embed" if is_timm(tensors) else "visual.positional_embedding"
    patches = tensors[name].shape[-2] - (not is_timm(tensors))  # without the class token of OpenAI's tower
    sized = replace(image, image_size=size)  # which may have pixels beyond the last whole patch
    if math.prod(sized.grid) != patches:
        raise PackError(
            f"{place}: its config says image_size {size}, which is {math.prod(sized.grid)} patches, "
            f"but its tensors have {patches}"
        )
    return sized


def _refuse_unknown(values: Mapping[str, Any], known: set[str], place: str) -> None:
    strange = [key for key, value in values.items() if key not in known and value not in (None, False)]
    if strange:
        raise PackError(f"{place}: a tower with '{strange[0]}' cannot be built here")


def _activation(values: Mapping[str, Any], usual: Any) -> Any:
    return "gelu_tanh" if (values.get("act_kwargs") or {}).get("approximate") == "tanh" else usual


def _vision(tensors: Tensors, values: dict[str, Any], quick: str, place: str) -> ImageEncoderConfig:
    _refuse_unknown(values, VISION_KEYS, place)
    head_width = values.get("head_width", openai.HEAD_WIDTH)
    if isinstance(values.get("layers"), list | tuple):
        return openai.resnet(tensors, values["width"] * 32 // head_width)
    pool = values.get("pool_type", "tok")
    if pool not in ("tok", "avg"):
        raise PackError(f"{place}: a tower with pool_type '{pool}' cannot be built here")
    mean = pool == "avg"
    return openai.vision_transformer(
        tensors,
        values["width"] // head_width,
        activation=_activation(values, quick),
        pooling="mean" if mean else "class",
        class_token=mean,
        norm_tokens=mean and not values.get("final_ln_after_pool", False),
        input_norm=not values.get("no_ln_pre", False),
        layer_scale=values.get("ls_init_value") is not None,
        norm_epsilon=(values.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def _timm(tensors: Tensors, values: dict[str, Any], quick: str, place: str) -> VisionTransformerConfig:
    _refuse_unknown(values, TIMM_KEYS, place)
    if "visual.trunk.attn_pool.latent" not in tensors or values.get("timm_proj", "none") not in ("none", "", None):
        raise PackError(
            f"{place}: the only image towers of timm that can be built here are SigLIP's, with attention pooling"
        )
    name, given = str(values.get("timm_model_name")), values.get("timm_model_kwargs") or {}
    kernel = tensors["visual.trunk.patch_embed.proj.weight"]
    width = kernel.shape[0]
    heads = given.get("num_heads") or TIMM_HEADS.get(width)
    if heads is None:
        raise PackError(
            f"{place}: the number of heads of its image tower '{name}', which is {width} wide, is not known: "
            "add num_heads to its timm_model_kwargs"
        )
    usual = "gelu_tanh" if any(part in name for part in TIMM_TANH) else "gelu"
    return VisionTransformerConfig(
        image_size=math.isqrt(tensors["visual.trunk.pos_embed"].shape[1]) * kernel.shape[-1],
        patch_size=kernel.shape[-1],
        width=width,
        layers=count(tensors, r"visual\.trunk\.blocks\.(\d+)\."),
        heads=heads,
        embed_dim=width,
        pooling="attention",
        activation="gelu_tanh" if given.get("act_layer", usual) == "gelu_tanh" else "gelu",
        hidden=openai.hidden(tensors, "visual.trunk.blocks.0.mlp.fc1.weight"),
        norm_epsilon=TIMM_EPSILON,
        input_norm=False,
        patch_bias=True,
        projection=False,
    )


def _text(tensors: Tensors, values: dict[str, Any], quick: str, place: str) -> TextTransformerConfig:
    _refuse_unknown(values, TEXT_KEYS | TOKENIZER_KEYS, place)
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    biased = bool(values.get("proj_bias"))
    projection = f"{prefix}text_projection.weight" if biased else f"{prefix}text_projection"
    pooling = {"argmax": "argmax", "last": "last", "eos": "end"}.get(values.get("pool_type", "argmax"))
    if pooling is None or values.get("proj_type", "linear") != "linear":
        raise PackError(f"{place}: a text tower with pool_type '{values.get('pool_type')}' cannot be built here")
    causal = not values.get("no_causal_mask", False)
    vocab_size, width = tensors[f"{prefix}token_embedding.weight"].shape
    return TextTransformerConfig(
        vocab_size=vocab_size,
        context_length=tensors[f"{prefix}positional_embedding"].shape[0],
        width=width,
        layers=count(tensors, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
        heads=values.get("heads", 8),
        embed_dim=tensors[projection].shape[0 if biased else 1],
        pad_id=values.get("pad_id", 0),
        end_id=values.get("eos_id", USUAL_END),
        causal=causal,
        pooling=pooling,  # pyright: ignore[reportArgumentType]
        activation=_activation(values, quick),
        hidden=openai.hidden(tensors, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"),
        norm_epsilon=(values.get("norm_kwargs") or {}).get("eps", 1e-5),
        layer_scale=values.get("ls_init_value") is not None,
        mask_padding=False,
        projection_bias=biased,
    )
