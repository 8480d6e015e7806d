"""Writes a CLIP in OpenAI's or Hugging Face's layout, for their own code to open.

Only their architectures can be written: every other encoder is refused by name.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codebrush.conversion import huggingface, openai
from codebrush.conversion.state_dict_rules import extract
from codebrush.errors import PackError
from codebrush.files import write_json
from codebrush.models.clip import CLIP
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.transformer import TransformerConfig

LAYOUTS = ("openai", "huggingface")
OPENAI_FILE = "clip.pt"
CUBIC = 3  # Pillow's number for bicubic resampling
TO_HUGGINGFACE = {ours: theirs for theirs, ours in huggingface.ACTIVATIONS.items() if theirs != "gelu_new"}


def export_clip(clip: CLIP, folder: Path, layout: str) -> None:
    """Write `clip` into `folder`: clip.pt for OpenAI's clip.load, or the files that CLIPModel.from_pretrained reads.

    Raises:
        PackError: if the layout has no such encoder; it is named.
    """
    image, text = clip.config.image, clip.config.text
    if not isinstance(text, TextTransformerConfig):
        raise _no_place(layout, f"the text encoder is a {type(text).__name__.removesuffix('Config')}")
    _check_text(text, layout)
    if isinstance(image, VisionTransformerConfig):
        _check_vision(image, layout)
    elif layout == "huggingface":
        raise _no_place(layout, "the image encoder is a ModifiedResNet")
    if float(clip.logit_bias.detach()):
        raise _no_place(layout, "its logits have a bias, as the sigmoid loss trains it")
    if layout == "openai":
        _check_openai(image, text)
        torch.save(_openai_tensors(clip), folder / OPENAI_FILE)
        return
    assert isinstance(image, VisionTransformerConfig)
    save_file(extract(clip, huggingface.CLIP_RULES), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _huggingface_config(clip, image, text))
    write_json(folder / huggingface.PICTURES, _huggingface_pictures(clip))


def _check_text(text: TextTransformerConfig, layout: str) -> None:
    odd = {
        "its text encoder is not causal": not text.causal,
        f"its text encoder pools by '{text.pooling}'": text.pooling not in ("argmax", "end"),
        "its text encoder starts from a narrower token table": text.token_width,
        # transformers takes an end token of 2 for the mistake of older configs, and pools at the largest token
        "its end token has the number 2": text.pooling == "end" and text.end_id == huggingface.OLD_END,
        "its text encoder's projection has a bias": text.projection_bias,
    }
    _refuse(odd, layout)
    _refuse(_odd_trunk(text.trunk, "text"), layout)


def _check_vision(image: VisionTransformerConfig, layout: str) -> None:
    odd = {
        f"its vision transformer pools by '{image.pooling}'": image.pooling != "class",
        "its vision transformer's patch embedding has a bias": image.patch_bias,
        "its vision transformer has no norm before its blocks": not image.input_norm,
        "its vision transformer has no projection": not image.projection,
        "the pictures it reads are not square": image.image_shape[0] != image.image_shape[1],
    }
    _refuse(odd, layout)
    _refuse(_odd_trunk(image.trunk, "image"), layout)


def _odd_trunk(trunk: TransformerConfig, tower: str) -> dict[str, Any]:
    return {
        f"the {tower} encoder's activation is {trunk.activation}": trunk.activation not in TO_HUGGINGFACE,
        f"the {tower} encoder has layer scale": trunk.layer_scale,
    }


def _check_openai(image: ModifiedResNetConfig | VisionTransformerConfig, text: TextTransformerConfig) -> None:
    """Refuse what OpenAI's code assumes otherwise and no tensor could say."""
    if text.pooling == "end" and text.end_id != text.vocab_size - 1:
        raise _no_place("openai", "its end token is not the largest, where OpenAI's code pools")
    trunks = {"text": text.trunk} | ({"image": image.trunk} if isinstance(image, VisionTransformerConfig) else {})
    if isinstance(image, ModifiedResNetConfig) and image.width * 32 != image.heads * openai.HEAD_WIDTH:
        raise _no_place("openai", "the heads of its image encoder are not 64 wide")
    for tower, trunk in trunks.items():
        odd = {
            f"the {tower} encoder's activation is {trunk.activation}": trunk.activation != "quick_gelu",
            f"the heads of its {tower} encoder are not 64 wide": trunk.width != trunk.heads * openai.HEAD_WIDTH,
            f"the {tower} encoder's MLP is not four times as wide": trunk.mlp_width != 4 * trunk.width,
            f"the {tower} encoder's norms have an epsilon of {trunk.norm_epsilon}": trunk.norm_epsilon != 1e-5,
        }
        _refuse(odd, "openai")


def _openai_tensors(clip: CLIP) -> dict[str, Tensor]:
    resnet = isinstance(clip.config.image, ModifiedResNetConfig)
    marks = ["visual.attnpool.positional_embedding", f"visual.bn1.{openai.COUNTER}"] if resnet else []
    return extract(clip, openai.rules(dict.fromkeys(marks, torch.zeros(0))))


def _huggingface_config(clip: CLIP, image: VisionTransformerConfig, text: TextTransformerConfig) -> dict[str, Any]:
    def trunk(config: TransformerConfig) -> dict[str, Any]:
        return {
            "hidden_size": config.width,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "hidden_act": TO_HUGGINGFACE[config.activation],
            "layer_norm_eps": config.norm_epsilon,
        }

    end = huggingface.OLD_END if text.pooling == "argmax" else text.end_id
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image.embed_dim,
        "logit_scale_init_value": math.log(1 / 0.07),
        "vision_config": trunk(image.trunk)
        | {"model_type": "clip_vision_model", "image_size": image.image_size, "patch_size": image.patch_size},
        "text_config": trunk(text.trunk)
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "pad_token_id": text.pad_id,
            "eos_token_id": end,
        },
    }


def _huggingface_pictures(clip: CLIP) -> dict[str, Any]:
    side, crop = clip.image_size, clip.config.resize_mode != "squeeze"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if crop else {"height": side, "width": side},
        "resample": CUBIC,
        "do_center_crop": crop,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(clip.config.image_mean),
        "image_std": list(clip.config.image_std),
    }


def _refuse(odd: Mapping[str, Any], layout: str) -> None:
    for what, found in odd.items():
        if found:
            raise _no_place(layout, what)


def _no_place(layout: str, what: str) -> PackError:
    return PackError(
        f"this CLIP cannot be written in the layout '{layout}': {what}; one that is trained with "
        "`architecture: openai` can be"
    )
