"""OpenAI's CLIP (Radford et al. 2021) and open_clip's checkpoints with the same tensor names: rules and sizes.

Sizes are read from the tensors. No tensor gives the number of heads; as in OpenAI's code they are 64 wide.
"""

import math
from collections.abc import Mapping
from typing import Any

from codebrush.conversion.state_dict_rules import Rule, Tensors, check_config, count, prefixed
from codebrush.errors import PackError
from codebrush.models.clip import CLIPConfig
from codebrush.models.encoders.image_encoder import ImageEncoderConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig

HEAD_WIDTH = 64
SCALARS = ("input_resolution", "context_length", "vocab_size")  # stored beside the tensors in the published archives
ARGUMENTS = {"embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size", "context_length"}
ARGUMENTS |= {"vocab_size", "transformer_width", "transformer_heads", "transformer_layers"}  # of OpenAI's CLIP class
IGNORED = "|".join(SCALARS) + r"|(text\.)?attn_mask"
COUNTER = "num_batches_tracked"  # of batch norms; some files lack it, and nothing here uses it

BLOCK = [
    Rule(r"(\d+)\.attention_norm\.(.+)", r"\1.ln_1.\2"),
    Rule(r"(\d+)\.attention\.qkv\.(.+)", r"\1.attn.in_proj_\2"),
    Rule(r"(\d+)\.attention\.out\.(.+)", r"\1.attn.out_proj.\2"),
    Rule(r"(\d+)\.attention_gain", r"\1.ls_1.gamma"),
    Rule(r"(\d+)\.mlp_norm\.(.+)", r"\1.ln_2.\2"),
    Rule(r"(\d+)\.mlp\.up\.(.+)", r"\1.mlp.c_fc.\2"),
    Rule(r"(\d+)\.mlp\.down\.(.+)", r"\1.mlp.c_proj.\2"),
    Rule(r"(\d+)\.mlp_gain", r"\1.ls_2.gamma"),
]
TEXT = [
    Rule(r"token_embedding\.weight", "token_embedding.weight"),
    Rule(r"position_embedding", "positional_embedding"),
    *prefixed(BLOCK, "transformer.blocks.", "transformer.resblocks."),
    Rule(r"final_norm\.(.+)", r"ln_final.\1"),
]
VISION = [
    Rule(r"patch_embedding\.weight", "conv1.weight"),
    Rule(r"class_embedding", "class_embedding"),
    Rule(r"position_embedding", "positional_embedding"),
    Rule(r"input_norm\.(.+)", r"ln_pre.\1"),
    *prefixed(BLOCK, "transformer.blocks.", "transformer.resblocks."),
    Rule(r"final_norm\.(.+)", r"ln_post.\1"),
    Rule(r"projection\.weight", "proj", transposed=True),
]
STEM = ("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3")  # convolution, norm and activation, three times
RESNET = [
    *(Rule(rf"stem\.{index}\.(.+)", rf"{name}.\1") for index, name in enumerate(STEM) if name),
    *(
        rule
        for stage in range(4)
        for rule in prefixed(
            [
                Rule(r"(\d+)\.conv(\d)\.(.+)", r"\1.conv\2.\3"),
                Rule(r"(\d+)\.norm(\d)\.(.+)", r"\1.bn\2.\3"),
                Rule(r"(\d+)\.shortcut\.conv\.(.+)", r"\1.downsample.0.\2"),
                Rule(r"(\d+)\.shortcut\.norm\.(.+)", r"\1.downsample.1.\2"),
            ],
            f"stages.{stage}.",
            f"layer{stage + 1}.",
        )
    ),
    Rule(r"pool\.position_embedding", "attnpool.positional_embedding"),
    Rule(r"pool\.query\.(.+)", r"attnpool.q_proj.\1"),
    Rule(r"pool\.key\.(.+)", r"attnpool.k_proj.\1"),
    Rule(r"pool\.value\.(.+)", r"attnpool.v_proj.\1"),
    Rule(r"pool\.out\.(.+)", r"attnpool.c_proj.\1"),
]


def is_state_dict(tensors: Tensors) -> bool:
    """Whether a state dict has OpenAI's or open_clip's tensor names."""
    return any(name.startswith("visual.") for name in tensors)


def rules(tensors: Tensors) -> list[Rule]:
    """The rules for a state dict, whether or not its text encoder has a prefix and its text projection a bias."""
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    biased = f"{prefix}text_projection.weight" in tensors
    projection = (
        Rule(r"text_encoder\.projection\.(.+)", prefix + r"text_projection.\1")
        if biased
        else Rule(r"text_encoder\.projection\.weight", prefix + "text_projection", transposed=True)
    )
    image = RESNET if "visual.attnpool.positional_embedding" in tensors else VISION
    return [
        Rule("log_scale", "logit_scale"),
        Rule("logit_bias", "logit_bias" if "logit_bias" in tensors else ()),
        *([] if any(name.endswith(COUNTER) for name in tensors) else [Rule(rf".*\.{COUNTER}", ())]),
        *prefixed(image, "image_encoder.", "visual."),
        projection,
        *prefixed(TEXT, "text_encoder.", prefix),
    ]


def config(tensors: Tensors, settings: Mapping[str, Any] | None, place: str) -> CLIPConfig:
    """The config of an OpenAI CLIP; `settings` are the arguments of OpenAI's CLIP class, None if unknown.

    Raises:
        PackError: if a tensor is missing, or the settings contradict the tensors.
    """
    settings = settings or {}
    try:
        image = _image(tensors, place)
        width = tensors["ln_final.weight"].shape[0]
        text = TextTransformerConfig(
            vocab_size=tensors["token_embedding.weight"].shape[0],
            context_length=tensors["positional_embedding"].shape[0],
            width=width,
            layers=count(tensors, r"transformer\.resblocks\.(\d+)\."),
            heads=settings.get("transformer_heads") or _heads(width, "text", place),
            embed_dim=tensors["text_projection"].shape[1],
            activation="quick_gelu",
            hidden=hidden(tensors, "transformer.resblocks.0.mlp.c_fc.weight"),
        )
    except KeyError as error:
        raise PackError(f"{place} lacks the tensor {error.args[0]}: it is not a complete CLIP") from error
    found = {
        "embed_dim": text.embed_dim,
        "image_resolution": image.image_size,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "transformer_width": text.width,
        "transformer_layers": text.layers,
    }
    check_config(settings, found, place)
    return CLIPConfig(image, text, resize_mode="crop")


def _image(tensors: Tensors, place: str) -> ImageEncoderConfig:
    if "visual.attnpool.positional_embedding" in tensors:
        return resnet(tensors, _heads(tensors["visual.layer1.0.conv1.weight"].shape[0] * 32, "image", place))
    heads = _heads(tensors["visual.conv1.weight"].shape[0], "image", place)
    return vision_transformer(tensors, heads, activation="quick_gelu")


def resnet(tensors: Tensors, heads: int) -> ModifiedResNetConfig:
    """The config of the ModifiedResNet under `visual.`, from its tensors."""
    stages = [count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    return ModifiedResNetConfig(
        image_size=math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1) * 32,
        width=tensors["visual.layer1.0.conv1.weight"].shape[0],
        blocks=(stages[0], stages[1], stages[2], stages[3]),
        heads=heads,
        embed_dim=tensors["visual.attnpool.c_proj.weight"].shape[0],
    )


def vision_transformer(tensors: Tensors, heads: int, **choices: Any) -> VisionTransformerConfig:
    """The config of the vision transformer under `visual.`; `choices` are the fields that its tensors do not give."""
    kernel = tensors["visual.conv1.weight"]
    side = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    return VisionTransformerConfig(
        image_size=side * kernel.shape[-1],
        patch_size=kernel.shape[-1],
        width=kernel.shape[0],
        layers=count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
        heads=heads,
        embed_dim=tensors["visual.proj"].shape[1],
        hidden=hidden(tensors, "visual.transformer.resblocks.0.mlp.c_fc.weight"),
        **choices,
    )


def hidden(tensors: Tensors, name: str) -> int:
    """The inner width of an MLP, from its first matrix (inner, width); 0 stands for the usual 4 x width."""
    inner, width = tensors[name].shape
    return 0 if inner == 4 * width else inner


def _heads(width: int, tower: str, place: str) -> int:
    if width % HEAD_WIDTH:
        raise PackError(
            f"{place}: the {tower} encoder is {width} wide, and no tensor gives its number of heads: name its config"
        )
    return width // HEAD_WIDTH
