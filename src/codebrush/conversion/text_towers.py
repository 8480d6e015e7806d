"""Text encoders of transformers (BERT, XLM-RoBERTa) in CLIPs of open_clip, in Chinese-CLIP, and alone, as in M-CLIP.

Most of them read many languages. Sizes come from the tensors; heads are 64 wide unless a config says otherwise, as in
every published BERT and XLM-RoBERTa.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from codebrush.conversion.state_dict_rules import Rule, Tensors, count, fill
from codebrush.errors import PackError
from codebrush.models.clip import CLIP
from codebrush.models.encoders.pretrained_text import PretrainedTextConfig
from codebrush.models.encoders.text_encoder import make_text_encoder

OPEN_CLIP_PREFIX = "text.transformer."
CHINESE_PREFIX = "text_model."
M_CLIP_PREFIX = "transformer."
WORDS = "embeddings.word_embeddings.weight"
HEAD_WIDTH = 64
CONTEXT = 77  # tokens of a text, as open_clip reads them
CHINESE_CONTEXT = 52  # as Chinese-CLIP was trained
POOLERS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "first"}  # open_clip's names -> ours
PROJECTIONS = {"linear": "linear", "mlp": "mlp", None: "none", "": "none", "none": "none"}
OPEN_CLIP_KEYS = {"hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "proj", "pooler_type"}
FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
FIELDS += ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")


def is_open_clip(tensors: Tensors) -> bool:
    """Whether an open_clip state dict has a text encoder of transformers."""
    return OPEN_CLIP_PREFIX + WORDS in tensors


def is_chinese_clip(tensors: Tensors) -> bool:
    """Whether a state dict with Hugging Face's names is that of a ChineseCLIPModel."""
    return CHINESE_PREFIX + WORDS in tensors


def is_m_clip(tensors: Tensors) -> bool:
    """Whether a state dict is that of an M-CLIP text encoder, which comes without an image encoder."""
    return M_CLIP_PREFIX + WORDS in tensors and "LinearTransformation.weight" in tensors


def open_clip_config(tensors: Tensors, values: Mapping[str, Any], embed_dim: int, place: str) -> PretrainedTextConfig:
    """The text encoder of an open_clip `text_cfg` that names one of transformers (`hf_model_name`).

    Raises:
        PackError: if it pools or projects in a way that cannot be built here.
    """
    pooler = values.get("hf_pooler_type") or values.get("pooler_type") or "mean_pooler"
    projection = values.get("hf_proj_type", values.get("proj"))
    if pooler not in POOLERS or projection not in PROJECTIONS:
        raise PackError(
            f"{place}: a text tower with pooler_type '{pooler}' and proj '{projection}' cannot be built here"
        )
    sizes = _sizes(tensors, OPEN_CLIP_PREFIX)
    context = values.get("context_length", CONTEXT)
    return _config(sizes, context, embed_dim, pooling=POOLERS[pooler], projection=PROJECTIONS[projection])


def chinese_config(tensors: Tensors, values: Mapping[str, Any], embed_dim: int) -> PretrainedTextConfig:
    """The text encoder of a Chinese-CLIP; `values` is the text_config of its config.json."""
    sizes = _sizes(tensors, CHINESE_PREFIX) | {name: values[name] for name in FIELDS if values.get(name) is not None}
    return _config(sizes | {"model_type": "bert"}, CHINESE_CONTEXT, embed_dim, pooling="first", projection="linear")


def rules(tensors: Tensors) -> list[Rule]:
    """The rules for the text encoder of a state dict; none if it is not one of transformers."""
    if is_open_clip(tensors):
        return _rules(tensors, OPEN_CLIP_PREFIX, "text.proj.")
    if is_chinese_clip(tensors):
        return _rules(tensors, CHINESE_PREFIX, "text_projection.")
    return []


def join_m_clip(clip: CLIP, tensors: Tensors, place: str) -> CLIP:
    """`clip` with the M-CLIP text encoder in `tensors` in place of its own (Carlsson et al. 2022).

    Raises:
        PackError: if the two embed into spaces of different width, or a tensor is missing or left over.
    """
    if not is_m_clip(tensors):
        raise PackError(f"{place} holds no text encoder of M-CLIP (transformer.* and LinearTransformation.*)")
    width = tensors["LinearTransformation.weight"].shape[0]
    if width != clip.embed_dim:
        raise PackError(
            f"the text encoder {place} embeds into {width} numbers, but the CLIP into {clip.embed_dim}: name the CLIP "
            "that it was trained for"
        )
    text = _config(_sizes(tensors, M_CLIP_PREFIX), CONTEXT, width, pooling="mean", projection="bias")
    encoder = make_text_encoder(text)
    own = _rules(tensors, M_CLIP_PREFIX, "LinearTransformation.")
    cut = [Rule(rule.ours.removeprefix(r"text_encoder\."), rule.theirs) for rule in own]
    fill(encoder, tensors, cut, r".*\.position_ids", place)
    joined = CLIP(replace(clip.config, text=text), clip.image_encoder, encoder)
    joined.load_state_dict({"log_scale": clip.log_scale, "logit_bias": clip.logit_bias}, strict=False)
    return joined.eval()


def _rules(tensors: Tensors, encoder: str, projection: str) -> list[Rule]:
    pooled = any(name.startswith(f"{encoder}pooler.") for name in tensors)
    return [
        *([] if pooled else [Rule(r"text_encoder\.encoder\.pooler\..+", ())]),  # nothing here uses it
        Rule(r"text_encoder\.encoder\.(.+)", encoder + r"\1"),
        Rule(r"text_encoder\.projection\.(.+)", projection + r"\1"),
    ]


def _sizes(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """The config of transformers for the encoder whose tensors start with `prefix`."""
    vocabulary, width = tensors[prefix + WORDS].shape
    kinds = tensors[f"{prefix}embeddings.token_type_embeddings.weight"].shape[0]
    roberta = kinds == 1  # BERT tells two sentences apart, RoBERTa does not
    return {
        "model_type": "xlm-roberta" if roberta else "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": count(tensors, re.escape(prefix) + r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "intermediate_size": tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
        "hidden_act": "gelu",
        "max_position_embeddings": tensors[f"{prefix}embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": kinds,
        "layer_norm_eps": 1e-5 if roberta else 1e-12,
        "pad_token_id": 1 if roberta else 0,
    }


def _config(sizes: dict[str, Any], context: int, embed_dim: int, **choices: Any) -> PretrainedTextConfig:
    room, pad = sizes["max_position_embeddings"], sizes["pad_token_id"]
    if sizes["model_type"] == "xlm-roberta":
        room -= pad + 1  # it counts positions from there
    return PretrainedTextConfig(json.dumps(sizes, sort_keys=True), min(context, room), embed_dim, pad, **choices)
