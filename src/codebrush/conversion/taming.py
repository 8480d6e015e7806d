"""taming-transformers (Esser et al. 2021): rules and sizes of its VQGANs and of its second stage, a code transformer.

The tensors of a VQGAN give everything but the image size it was trained on. Those of a second stage do not give the
number of heads, the shape of the grid, and what the condition is.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from codebrush.conversion.state_dict_rules import Rule, Tensors, check_config, count, prefixed
from codebrush.errors import PackError
from codebrush.models.code_transformer import CodeTransformerConfig
from codebrush.models.vqgan import VQGANConfig
from codebrush.warned import warn

IGNORED = r"loss\..*|model_ema\..*|colorize|quantize\.embedding\.(cluster_size|embed_avg)"
TRANSFORMER_IGNORED = r".*\.attn\.mask|(first_stage_model|cond_stage_model|permuter)\..*"
USUAL_SIZE = 256
USUAL_KL = 5e-4
PUBLISHED_HEADS = 16

RES_BLOCK = [Rule(r"(.*)shortcut\.(.+)", r"\1nin_shortcut.\2"), Rule(r"(.+)", r"\1")]
VQ_RULES = [
    Rule(r"quantizer\.codebook", "quantize.embedding.weight"),
    Rule(r"quantizer\.(initialised|share|sums)", ()),
    *RES_BLOCK,
]
GUMBEL_RULES = [
    Rule(r"quantizer\.codebook", "quantize.embed.weight"),
    Rule(r"quantizer\.proj\.(.+)", r"quantize.proj.\1"),
    *RES_BLOCK,
]
BLOCK = [
    Rule(r"(\d+)\.attention_norm\.(.+)", r"\1.ln1.\2"),
    Rule(r"(\d+)\.attention\.qkv\.(.+)", (r"\1.attn.query.\2", r"\1.attn.key.\2", r"\1.attn.value.\2")),
    Rule(r"(\d+)\.attention\.out\.(.+)", r"\1.attn.proj.\2"),
    Rule(r"(\d+)\.mlp_norm\.(.+)", r"\1.ln2.\2"),
    Rule(r"(\d+)\.mlp\.up\.(.+)", r"\1.mlp.0.\2"),
    Rule(r"(\d+)\.mlp\.down\.(.+)", r"\1.mlp.2.\2"),
]
TRANSFORMER_RULES = [
    *prefixed(BLOCK, "transformer.blocks.", "transformer.blocks."),
    Rule(r"code_embedding\.weight", "transformer.tok_emb.weight"),
    Rule(r"final_norm\.(.+)", r"transformer.ln_f.\1"),
    Rule(r"head\.weight", "transformer.head.weight"),
    # `second_stage` makes these from its one table of positions and its one table of tokens.
    Rule(r"(positions|prefix_positions|start|nulls\..+|projections\..+)", r"\1"),
]


def parameters(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The model's parameters in a config: `params` of the whole YAML or of its `model`, or the mapping itself."""
    values = settings or {}
    values = values.get("model", values)
    return values.get("params", values) or {}


def first_stage(tensors: Tensors) -> Tensors:
    """The tensors of the VQGAN, also if the checkpoint is that of a second stage."""
    prefix = "first_stage_model."
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return inner or tensors


def is_gumbel(tensors: Tensors) -> bool:
    """Whether the model is a GumbelVQ, which picks codes by logits, and not a VQModel."""
    return "quantize.embed.weight" in tensors


def vqgan_config(tensors: Tensors, settings: Mapping[str, Any] | None, place: str) -> VQGANConfig:
    """The config of a VQModel or GumbelVQ. Without `settings`, images are 256 pixels square.

    Raises:
        PackError: if a tensor is missing, or the settings contradict the tensors.
    """
    params = parameters(settings)
    params = (params.get("first_stage_config") or {}).get("params", params)
    sizes = params.get("ddconfig") or {}
    try:
        found = _vqgan_sizes(tensors, sizes.get("resolution", USUAL_SIZE), params.get("kl_weight", USUAL_KL))
    except (KeyError, ZeroDivisionError) as error:
        raise PackError(f"{place} lacks the tensor {error}: it is not a complete VQGAN") from error
    read = {"ch": found.channels, "num_res_blocks": found.res_blocks, "z_channels": found.latent_channels}
    check_config(sizes, read | {"double_z": False, "in_channels": 3, "out_ch": 3}, place)
    check_config(params, {"embed_dim": found.code_dim, "n_embed": found.codebook_size}, place)
    for name, value in {
        "ch_mult": found.channel_multipliers,
        "attn_resolutions": tuple(sorted(found.attention_resolutions)),
    }.items():
        claimed = sizes.get(name)
        if claimed is not None and (tuple(claimed) if name == "ch_mult" else _attended(claimed, found)) != value:
            raise PackError(f"{place}: its config says {name} {list(claimed)}, but its tensors say {list(value)}")
    return found


def _attended(resolutions: Any, found: VQGANConfig) -> tuple[int, ...]:
    """Those of the `resolutions` with attention in a config that are the resolution of a level."""
    levels = range(len(found.channel_multipliers))
    return tuple(sorted({found.image_size >> level for level in levels} & set(resolutions)))


def _vqgan_sizes(tensors: Tensors, size: int, kl_weight: float) -> VQGANConfig:
    levels = count(tensors, r"encoder\.down\.(\d+)\.")
    channels = tensors["encoder.conv_in.weight"].shape[0]
    if tensors["encoder.conv_in.weight"].shape[1] != 3 or tensors["decoder.conv_out.weight"].shape[0] != 3:
        raise PackError("a VQGAN for other than three colour channels (of segmentation maps, say) cannot be built here")
    widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    gumbel = is_gumbel(tensors)
    codebook = tensors["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    return VQGANConfig(
        image_size=size,
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        res_blocks=count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        attention_resolutions=tuple(
            size >> level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in tensors
        ),
        middle_attention="encoder.mid.attn_1.q.weight" in tensors,
        latent_channels=tensors["encoder.conv_out.weight"].shape[0],
        code_dim=tensors["quant_conv.weight"].shape[0],
        codebook_size=codebook.shape[0],
        quantizer="gumbel" if gumbel else "vector",
        l2_normalized=False,
        kl_weight=kl_weight,
    )


def second_stage(
    tensors: Tensors, settings: Mapping[str, Any] | None, place: str
) -> tuple[CodeTransformerConfig, dict[str, torch.Tensor]]:
    """The config of a Net2NetTransformer, and its tensors with its tables of positions and tokens split as ours are.

    Without its config, 16 heads and no condition are assumed, with a warning.

    Raises:
        PackError: if a tensor is missing, the settings contradict the tensors, or there are too few positions.
    """
    params = parameters(settings)
    gpt = (params.get("transformer_config") or {}).get("params") or {}
    condition = params.get("cond_stage_config") or {}
    kind = condition.get("target", "") if isinstance(condition, Mapping) else str(condition)
    labels = (condition.get("params") or {}).get("n_classes", 0) if kind.endswith("Labelator") else 0
    start = not labels and (not kind or "SOSProvider" in kind or "unconditional" in kind)
    if "n_head" not in gpt:
        warn(f"{place}: without its config, {PUBLISHED_HEADS} heads and no condition are assumed; name its config")
    try:
        table, positions = tensors["transformer.tok_emb.weight"], tensors["transformer.pos_emb"][0]
    except KeyError as error:
        raise PackError(f"{place} lacks the tensor {error}: it is not a complete second stage") from error
    side = _side(len(positions), params, 1 if labels or start else None)
    config = CodeTransformerConfig(
        codebook_size=tensors["transformer.head.weight"].shape[0],
        grid=(side, side),
        width=table.shape[1],
        layers=count(tensors, r"transformer\.blocks\.(\d+)\."),
        heads=gpt.get("n_head", PUBLISHED_HEADS),
        source_codes=not (labels or start),
        labels=labels,
        activation="gelu",
        norm="layer",
        rotary="none",
        start_token=bool(start),
    )
    found = {"vocab_size": config.codebook_size, "n_layer": config.layers, "n_embd": config.width}
    check_config(gpt, found | {"block_size": len(positions)}, place)
    prefix = config.prefix_length
    if prefix + config.code_count - 1 > len(positions) or labels > len(table):
        raise PackError(f"{place}: {len(positions)} positions are too few for a grid of {side} x {side} codes")
    # No code follows the last one, so the original need not have a position for it.
    room = torch.nn.functional.pad(positions[prefix:], (0, 0, 0, config.code_count))
    made = {"prefix_positions": positions[:prefix], "positions": room[: config.code_count]}
    if start:
        made["start"] = table[params.get("sos_token", 0)][None]
    elif labels:  # labels and codes share the one table
        made |= {"projections.labels.weight": table[:labels], "nulls.labels": table[:labels].mean(0, keepdim=True)}
    else:
        made["nulls.source_codes"] = table.mean(0, keepdim=True).expand(config.code_count, -1)
    kept = {name: tensor for name, tensor in tensors.items() if name != "transformer.pos_emb"}
    return config, kept | made


def _side(positions: int, params: Mapping[str, Any], prefix: int | None) -> int:
    """The side of the grid of codes: from the first stage's config, or the largest that the positions allow."""
    room = positions + 1 - prefix if prefix is not None else (positions + 1) // 2
    sizes = ((params.get("first_stage_config") or {}).get("params") or {}).get("ddconfig") or {}
    side = sizes.get("resolution", 0) >> max(0, len(sizes.get("ch_mult") or ()) - 1)
    return side if 0 < side**2 <= room else math.isqrt(room)
