"""Recognises the published layouts by the names of their tensors, whatever prefix stands before every name."""

from collections.abc import Mapping
from typing import Any

from codebrush.conversion.state_dict_rules import Tensors
from codebrush.errors import PackError

LAYOUTS = {  # a tensor that only this layout has -> the layout, and the kind of model
    "vision_model.embeddings.patch_embedding.weight": ("huggingface", "clip"),
    "visual.trunk.patch_embed.proj.weight": ("open_clip", "clip"),
    "visual.conv1.weight": ("openai", "clip"),
    "transformer.blocks.0.attn.key.weight": ("taming", "transformer"),
    "layers.0.attention.wqkv.weight": ("llamagen", "transformer"),
    "encoder.down.0.block.0.norm1.weight": ("taming", "vqgan"),
    "encoder.conv_blocks.0.res.0.norm1.weight": ("llamagen", "vqgan"),
}
TEXT_TOWERS = (  # a tensor that a published text encoder alone has: transformers' CLIPTextModel, OpenAI's names, BERTs
    "text_model.embeddings.token_embedding.weight",
    "token_embedding.weight",
    "embeddings.word_embeddings.weight",
)
COUNTERS = {"n_averaged", "initted", "step"}  # single numbers that averaging of weights keeps beside the model


def known(tensors: Tensors) -> tuple[str, str] | None:
    """The layout of a state dict and the kind of model it holds, for example ("openai", "clip"); None if unknown."""
    return next((found for name, found in LAYOUTS.items() if name in tensors), None)


def is_known(tensors: Tensors) -> bool:
    """Whether the tensors are those of a model or text encoder in a known layout, with or without a prefix."""
    inner = without_prefix(tensors)
    return known(inner) is not None or _is_text_tower(inner)


def without_prefix(tensors: Tensors) -> Tensors:
    """The tensors without the dotted prefix that all names share (`model.`, `ema_model.module.`), if that gives a known
    layout; otherwise as they are.

    The longest such prefix counts. Counters of averaging beside the model are left out then.
    """
    if known(tensors):
        return tensors
    models = {name: tensor for name, tensor in tensors.items() if name not in COUNTERS or tensor.ndim}
    parts = _shared_parts(list(models))
    for length in range(len(parts), 0, -1):
        prefix = "".join(f"{part}." for part in parts[:length])
        inner = {name.removeprefix(prefix): tensor for name, tensor in models.items()}
        if known(inner) or _is_text_tower(inner):
            return inner
    return tensors


def layout_of(tensors: Tensors, place: str) -> tuple[str, str]:
    """The layout of a state dict and the kind of model it holds.

    Raises:
        PackError: if it is in no known layout; the line says what it is instead, as far as the names tell.
    """
    found = known(tensors)
    if found is not None:
        return found
    if _is_text_tower(tensors):
        raise PackError(
            f"{place} is a text encoder alone, without an image encoder: name the whole CLIP, or join the two with "
            f"codebrush convert CLIP --text-tower {place}"
        )
    inside = sorted({name[: -len(mark)] for mark in LAYOUTS for name in tensors if name.endswith(f".{mark}")})
    names = ", ".join(sorted(tensors)[:3])
    if len(inside) > 1:
        raise PackError(
            f"{place} holds several models ({', '.join(inside)}): save the one to read in a file of its own"
        )
    if inside:
        other = next(name for name in tensors if not name.startswith(inside[0]))
        raise PackError(f"{place} holds a model under '{inside[0]}' beside other tensors ({other}, ...): save it alone")
    raise PackError(
        f"{place} is in no known layout: its tensors are called {names}, ...; docs/published.md lists the known ones"
    )


def check_architecture(settings: Mapping[str, Any] | None, tensors: Tensors, place: str) -> None:
    """Refuse, by what they are, models of transformers whose image encoder has the names of CLIP's but is another.

    Raises:
        PackError: if the model is of such a kind.
    """
    kind = (settings or {}).get("model_type")
    patches = tensors.get("vision_model.embeddings.patch_embedding.weight")
    if kind == "siglip2" or (patches is not None and patches.ndim == 2):
        raise PackError(
            f"{place} is a SigLIP 2 of variable picture size (NaFlex), which cannot be built here: take one of a fixed "
            "size, such as google/siglip2-base-patch16-224"
        )
    if kind not in (None, "clip", "siglip", "chinese_clip"):
        raise PackError(
            f"{place} is a model of the type '{kind}', not a CLIP, SigLIP or Chinese-CLIP: name one of those"
        )


def _is_text_tower(tensors: Tensors) -> bool:
    names = ("", "transformer.", "0.auto_model.", "text_model.", "bert.", "roberta.")
    return any(prefix + mark in tensors for prefix in names for mark in TEXT_TOWERS)


def _shared_parts(names: list[str]) -> list[str]:
    """The dotted parts with which all names begin, without the last part of any name."""
    shared = names[0].split(".")[:-1] if names else []
    for name in names:
        parts = name.split(".")[:-1]
        same = next((i for i, pair in enumerate(zip(shared, parts, strict=False)) if pair[0] != pair[1]), None)
        shared = shared[: min(len(shared), len(parts)) if same is None else same]
    return shared
