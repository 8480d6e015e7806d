"""LlamaGen (Sun et al. 2024): rules and sizes of its VQ model, our VQGAN, and of its GPT, our code transformer.

The tensors give nearly everything; those of a GPT do not give its number of heads and how many codes an image has.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from codebrush.conversion.state_dict_rules import Rule, Tensors, check_config, count
from codebrush.errors import PackError
from codebrush.models.code_transformer import CodeTransformerConfig
from codebrush.models.vqgan import VQGANConfig
from codebrush.warned import warn

VQ_IGNORED = r"quantize\.codebook_used"
GPT_IGNORED = r"freqs_cis|cls_embedding\.uncond_embedding|cls_embedding\.embedding_table\.weight|.*\.kv_cache\..*"
USUAL_SIZE = 256
USUAL_CODES = 256
HEADS_OF_WIDTH = {3200: 32, 4096: 32}  # the 3B and 7B models; in all others heads are 64 wide
HEAD_WIDTH = 64


def arguments(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The ModelArgs of a config, which may be the whole config or stored under their name."""
    values = settings or {}
    return values.get("ModelArgs", values)


def vq_rules(levels: int) -> list[Rule]:
    """The rules of a VQ model. Its decoder numbers levels from the lowest resolution, ours from the highest."""
    middle = {"block_1": 0, "attn_1": 1, "block_2": 2}
    rules = [
        Rule(r"quantizer\.codebook", "quantize.embedding.weight"),
        Rule(r"quantizer\.(initialised|share|sums)", ()),
        *(Rule(rf"(encoder|decoder)\.mid\.{name}\.(.+)", rf"\1.mid.{index}.\2") for name, index in middle.items()),
    ]
    for level in range(levels):
        for ours, theirs in (
            (rf"encoder\.down\.{level}", f"encoder.conv_blocks.{level}"),
            (rf"decoder\.up\.{level}", f"decoder.conv_blocks.{levels - 1 - level}"),
        ):
            rules += [
                Rule(rf"{ours}\.block\.(\d+)\.shortcut\.(.+)", rf"{theirs}.res.\1.nin_shortcut.\2"),
                Rule(rf"{ours}\.block\.(.+)", rf"{theirs}.res.\1"),
                Rule(rf"{ours}\.(.+)", rf"{theirs}.\1"),
            ]
    return [*rules, Rule(r"(.+)", r"\1")]


def vq_config(tensors: Tensors, settings: Mapping[str, Any] | None, place: str) -> VQGANConfig:
    """The config of a VQ model. Without `settings`, codes are L2-normalised and images 256 pixels square.

    Raises:
        PackError: if a tensor is missing, or the settings contradict the tensors.
    """
    given = arguments(settings)
    try:
        levels = count(tensors, r"encoder\.conv_blocks\.(\d+)\.")
        channels = tensors["encoder.conv_in.weight"].shape[0]
        names = [f"encoder.conv_blocks.{level}.res.0.conv1.weight" for level in range(levels)]
        codebook = tensors["quantize.embedding.weight"]
        found = VQGANConfig(
            image_size=USUAL_SIZE,
            channels=channels,
            channel_multipliers=tuple(tensors[name].shape[0] // channels for name in names),
            res_blocks=count(tensors, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
            attention_resolutions=(USUAL_SIZE >> (levels - 1),),
            middle_attention=True,
            latent_channels=tensors["encoder.conv_out.weight"].shape[0],
            code_dim=codebook.shape[1],
            codebook_size=codebook.shape[0],
            l2_normalized=given.get("codebook_l2_norm", True),
            commitment=given.get("commit_loss_beta", 0.25),
        )
    except KeyError as error:
        raise PackError(f"{place} lacks the tensor {error}: it is not a complete VQ model") from error
    sizes = {"codebook_size": found.codebook_size, "codebook_embed_dim": found.code_dim}
    check_config(given, sizes | {"z_channels": found.latent_channels}, place)
    for name in ("encoder_ch_mult", "decoder_ch_mult"):
        if name in given and tuple(given[name]) != found.channel_multipliers:
            claimed, read = list(given[name]), list(found.channel_multipliers)
            raise PackError(f"{place}: its config says {name} {claimed}, but its tensors say {read}")
    return found


GPT_RULES = [
    Rule(r"code_embedding\.weight", "tok_embeddings.weight"),
    Rule(r"transformer\.blocks\.(\d+)\.attention_norm\.weight", r"layers.\1.attention_norm.weight"),
    Rule(r"transformer\.blocks\.(\d+)\.attention\.qkv\.weight", r"layers.\1.attention.wqkv.weight"),
    Rule(r"transformer\.blocks\.(\d+)\.attention\.out\.weight", r"layers.\1.attention.wo.weight"),
    Rule(r"transformer\.blocks\.(\d+)\.mlp_norm\.weight", r"layers.\1.ffn_norm.weight"),
    Rule(
        r"transformer\.blocks\.(\d+)\.mlp\.up\.weight",
        (r"layers.\1.feed_forward.w1.weight", r"layers.\1.feed_forward.w3.weight"),
    ),
    Rule(r"transformer\.blocks\.(\d+)\.mlp\.down\.weight", r"layers.\1.feed_forward.w2.weight"),
    Rule(r"final_norm\.weight", "norm.weight"),
    Rule(r"head\.weight", "output.weight"),
    Rule(r"projections\.text_features\.0\.weight", "cls_embedding.cap_proj.fc1.weight"),
    Rule(r"projections\.text_features\.2\.weight", "cls_embedding.cap_proj.fc2.weight"),
    Rule(r"(prefix_positions|nulls\..+|projections\.labels\.weight)", r"\1"),  # `gpt` makes these
]


def gpt(
    tensors: Tensors, settings: Mapping[str, Any] | None, place: str
) -> tuple[CodeTransformerConfig, dict[str, Tensor]]:
    """The config of a GPT, and its tensors plus those of ours that it stores differently, like "no condition".

    Without `settings`, images have 256 codes, with a warning.

    Raises:
        PackError: if a tensor is missing, or the settings contradict the tensors.
    """
    given = arguments(settings)
    try:
        width = tensors["tok_embeddings.weight"].shape[1]
        text = "cls_embedding.cap_proj.fc1.weight" in tensors
        lead = tensors["cls_embedding.uncond_embedding" if text else "cls_embedding.embedding_table.weight"]
        hidden = tensors["layers.0.feed_forward.w1.weight"].shape[0]
        codes = given.get("block_size")
        if codes is None:
            warn(f"{place}: without a config, {USUAL_CODES} codes per image are assumed; name its config")
            codes = USUAL_CODES
        side = math.isqrt(codes)
        config = CodeTransformerConfig(
            codebook_size=tensors["output.weight"].shape[0],
            grid=(side, side),
            width=width,
            layers=count(tensors, r"layers\.(\d+)\."),
            heads=given.get("n_head") or HEADS_OF_WIDTH.get(width, width // HEAD_WIDTH),
            text_features=lead.shape[1] if text else 0,
            text_length=lead.shape[0] if text else 0,
            labels=0 if text else lead.shape[0] - 1,
            hidden=hidden,
            learned_positions=False,
            rotary="silent",
            text_projection="mlp",
            hide_padding=text,
            start_token=False,
        )
        found = {"dim": width, "n_layer": config.layers, "vocab_size": config.codebook_size}
        check_config(
            given,
            found | ({"caption_dim": config.text_features, "cls_token_num": config.text_length} if text else {}),
            place,
        )
        made = {"prefix_positions": lead.new_zeros(config.prefix_length, width)}
        if text:
            first, second = (tensors[f"cls_embedding.cap_proj.fc{layer}.weight"].float() for layer in (1, 2))
            inner = F.gelu(F.linear(lead.float(), first), approximate="tanh")
            made["nulls.text_features"] = F.linear(inner, second)
        else:  # the last row of the table means "no class"
            made |= {"projections.labels.weight": lead[:-1], "nulls.labels": lead[-1:]}
    except KeyError as error:
        raise PackError(f"{place} lacks the tensor {error}: it is not a complete GPT") from error
    return config, {**tensors, **made}
