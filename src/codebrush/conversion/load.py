"""Loads published weights in any known layout, or a folder in our own layout, as a model in float32 and eval mode.

The layout is recognised by the names of the tensors.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from codebrush.conversion import huggingface, llamagen, open_clip, openai, taming, text_towers
from codebrush.conversion.layouts import check_architecture, layout_of
from codebrush.conversion.sources import Settings, Source, open_source
from codebrush.conversion.state_dict_rules import Rule, Tensors, fill
from codebrush.errors import PackError
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.pretrained import CONFIG_FILE, PretrainedModel
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.pack.members import MEMBERS
from codebrush.warned import warn

Model = TypeVar("Model", bound=PretrainedModel)


def load_clip(path: str | Path, config: Settings = None) -> CLIP:
    """Load a CLIP of OpenAI, open_clip or Hugging Face (CLIP or SigLIP), or a folder in our layout, on the CPU.

    `path` is a checkpoint file or a folder. `config` is a mapping or a file, in the vocabulary of the project that
    published the weights; if it is left out, the one beside the weights is read. OpenAI and open_clip use the same
    tensor names: without a config QuickGELU is assumed, with a warning unless the file is clearly OpenAI's.

    The model is in eval mode and frozen; `requires_grad_()` lets it be trained.

    Raises:
        PackError: if the file or config cannot be read or is not a CLIP, or a tensor is missing, left over or of
            another shape; it is named.
    """
    model = own_model(path, "clip")
    return _frozen(model if isinstance(model, CLIP) else clip_from(open_source(path, config)))


def load_vqgan(path: str | Path, config: Settings = None) -> VQGAN:
    """Load a VQGAN of taming-transformers (VQModel, GumbelVQ, or the first stage in a Net2NetTransformer) or LlamaGen,
    or a folder in our layout; see `load_clip`.
    """
    model = own_model(path, "vqgan")
    return _frozen(model if isinstance(model, VQGAN) else vqgan_from(open_source(path, config)))


def load_code_transformer(path: str | Path, config: Settings = None) -> CodeTransformer:
    """Load a code transformer of taming-transformers (the minGPT of a Net2NetTransformer) or LlamaGen (class- or
    text-conditional), or a folder in our layout; see `load_clip`.
    """
    model = own_model(path, "transformer")
    return _frozen(model if isinstance(model, CodeTransformer) else transformer_from(open_source(path, config)))


def _frozen(model: Model) -> Model:
    return model.eval().requires_grad_(False)


def _failures_named(read: Callable[[Source], Model]) -> Callable[[Source], Model]:
    """Turn any failure of a reader into a PackError: foreign configs and tensors can be wrong in every way."""

    @functools.wraps(read)
    def guarded(source: Source) -> Model:
        try:
            return read(source)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise PackError(f"{source.place}: no network has this config and these tensors ({reason})") from error

    return guarded


def own_kind(path: str | Path) -> str | None:
    """The kind of model in the folder at `path`; None if the folder is not in our layout."""
    file = Path(path) / CONFIG_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    names = (name for name, each in MEMBERS.items() if each.model.config_class.__name__ == values.get("type"))
    return next(names, None)


def own_model(path: str | Path, kind: str) -> PretrainedModel | None:
    """The model in a folder in our layout; None if the folder is in another layout.

    Raises:
        PackError: if the model is of another kind, or cannot be read.
    """
    found = own_kind(path)
    if found is None:
        return None
    if found != kind:
        raise PackError(f"{path} holds a {found}, not a {kind}")
    return MEMBERS[kind].model.from_pretrained(path)


@_failures_named
def clip_from(source: Source) -> CLIP:
    """Build and fill the CLIP in an opened source; see `load_clip`."""
    tensors, place = source.tensors, source.place
    layout = _expect(source, "clip")
    settings = source.settings
    if settings is not None and huggingface.is_config(settings) != (layout == "huggingface"):
        raise PackError(
            f"{place} has the tensors of {layout}, but its config is that of another layout: name the right one"
        )
    if layout == "huggingface":
        if settings is None:
            raise PackError(f"{place} needs its config.json beside it: no tensor gives its number of heads")
        check_architecture(settings, tensors, place)
        config = huggingface.config(tensors, settings, source.pictures, place)
        return _filled(CLIP, config, tensors, huggingface.rules(tensors), huggingface.IGNORED, place)
    if settings is not None and "vision_cfg" in settings.get("model_cfg", settings):
        config = open_clip.config(tensors, settings, place)
    elif layout == "open_clip" or "text.token_embedding.weight" in tensors or text_towers.is_open_clip(tensors):
        raise PackError(f"{place} needs its open_clip config: no tensor gives its number of heads")
    else:
        known = openai.ARGUMENTS & (settings or {}).keys()
        if not known and not any(name in tensors or name in source.extras for name in openai.SCALARS):
            warn(f"{place} may be OpenAI's or open_clip's: QuickGELU is assumed; name its config to be sure")
        config = openai.config(tensors, settings, place)
    return _filled(CLIP, config, tensors, open_clip.rules(tensors), open_clip.IGNORED, place)


@_failures_named
def vqgan_from(source: Source) -> VQGAN:
    """Build and fill the VQGAN in an opened source; see `load_vqgan`."""
    tensors, place = taming.first_stage(source.tensors), source.place
    layout, kind = layout_of(tensors, place)
    if kind != "vqgan":
        raise PackError(f"{place} holds a {kind}, not a vqgan")
    if layout == "llamagen":
        config = llamagen.vq_config(tensors, source.settings, place)
        rules, ignored = llamagen.vq_rules(len(config.channel_multipliers)), llamagen.VQ_IGNORED
    else:
        config = taming.vqgan_config(tensors, source.settings, place)
        rules = taming.GUMBEL_RULES if taming.is_gumbel(tensors) else taming.VQ_RULES
        ignored = taming.IGNORED
    model = _filled(VQGAN, config, tensors, rules, ignored, place)
    if config.quantizer == "vector":
        model.quantizer.initialised.fill_(True)  # pyright: ignore[reportCallIssue]
    return model


@_failures_named
def transformer_from(source: Source) -> CodeTransformer:
    """Build and fill the code transformer in an opened source; see `load_code_transformer`."""
    place = source.place
    if _expect(source, "transformer") == "llamagen":
        config, tensors = llamagen.gpt(source.tensors, source.settings, place)
        return _filled(CodeTransformer, config, tensors, llamagen.GPT_RULES, llamagen.GPT_IGNORED, place)
    config, tensors = taming.second_stage(source.tensors, source.settings, place)
    return _filled(CodeTransformer, config, tensors, taming.TRANSFORMER_RULES, taming.TRANSFORMER_IGNORED, place)


READERS: dict[str, Callable[[Source], PretrainedModel]] = {
    "clip": clip_from,
    "vqgan": vqgan_from,
    "transformer": transformer_from,
}


def _expect(source: Source, kind: str) -> str:
    layout, found = layout_of(source.tensors, source.place)
    if found != kind:
        raise PackError(f"{source.place} holds a {found}, not a {kind}")
    return layout


def _filled(
    model: type[Model],
    config: CLIPConfig | VQGANConfig | CodeTransformerConfig,
    tensors: Tensors,
    rules: Sequence[Rule],
    ignored: str,
    place: str,
) -> Any:
    made = model.from_config(config)
    fill(made, tensors, rules, ignored, place)
    return made.eval()
