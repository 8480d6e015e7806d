"""The models that a pack may hold: one table, from which packs, training, blending and conversion take what they know.

A new kind of model is one entry here. A pack stores each member in a folder of its name.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from codebrush.models.bank import Bank
from codebrush.models.captioner import Captioner, patch_feature_shape
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.prior import Prior
from codebrush.models.translator import Translator
from codebrush.models.upscaler import Upscaler
from codebrush.models.vqgan import VQGAN

Misfits = Iterator[tuple[str, str]]  # "the {one}, but the {other}"


def _fits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    yield from ()


@dataclass(frozen=True)
class Member:
    """One kind of model.

    `name` is its folder in a pack and its name on the command line, `label` what messages call it. `remedy` completes
    "the pack has no LABEL: " for a pack without one. `misfits` takes the configs of the whole pack, by member name, and
    the side of its pictures, and yields what does not fit together; `tokenizer_misfits`, of members with a tokenizer
    beside them, takes the member's config and the tokenizer's number of tokens and context length. Every pack holds the
    `required` members. The pack's hash is made of those with `draws`, whose weights decide what a picture looks like.
    """

    name: str
    label: str
    model: type[PretrainedModel]
    remedy: str = ""
    misfits: Callable[[Mapping[str, Any], int], Misfits] = _fits
    tokenizer_misfits: Callable[[Any, int, int], Misfits] | None = None
    required: bool = False
    draws: bool = False


def _clip_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    texts, pictures = configs["clip"].text.embed_dim, configs["clip"].image.embed_dim
    if texts != pictures:
        yield f"CLIP's texts are {texts} wide", f"CLIP's pictures are {pictures} wide"


def _clip_tokenizer_misfits(config: Any, tokens: int, length: int) -> Misfits:
    rows = getattr(config.text, "vocab_size", tokens)  # another library's encoder may not say
    if tokens > rows:
        yield f"tokenizer has {tokens} tokens", f"CLIP has {rows}"
    if length > config.text.context_length:
        yield f"tokenizer makes rows of {length} tokens", f"CLIP reads {config.text.context_length}"


def _vqgan_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    if image_size % configs["vqgan"].factor:
        yield f"VQGAN has {configs['vqgan'].factor} pixels a code", f"pictures are {image_size} wide"


def _transformer_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    codes, vqgan = configs["transformer"].codebook_size, configs["vqgan"].codebook_size
    if codes != vqgan:
        yield f"transformer writes {codes} codes", f"VQGAN has {vqgan}"
    yield from _painter_misfits("transformer", configs, image_size)


def _flow_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    flow, vqgan = configs["flow"], configs["vqgan"]
    if flow.latent_channels != vqgan.code_dim:
        yield f"flow draws latents of {flow.latent_channels} numbers", f"VQGAN's have {vqgan.code_dim}"
    if flow.unit_latents != vqgan.unit_latents:
        kinds = {True: "unit vectors", False: "of any length"}
        yield f"flow draws latents that are {kinds[flow.unit_latents]}", f"VQGAN's are {kinds[vqgan.unit_latents]}"
    yield from _painter_misfits("flow", configs, image_size)


def _painter_misfits(name: str, configs: Mapping[str, Any], image_size: int) -> Misfits:
    painter, clip, side = configs[name], configs["clip"], configs["vqgan"].factor
    grid = tuple(painter.grid)
    if grid != (image_size // side,) * 2:
        yield (
            f"{name} draws a grid of {grid[0]} x {grid[1]} codes",
            f"VQGAN has {side} x {side} pixels a code and pictures are {image_size} wide",
        )
    if painter.text_features not in (0, width := clip.text.feature_width):
        yield f"{name} reads text features {painter.text_features} wide", f"CLIP makes them {width} wide"
    width = clip.text.embed_dim
    for embedding in (painter.text_embedding, painter.image_embedding):
        if embedding not in (0, width):
            yield f"{name} reads embeddings {embedding} wide", f"CLIP makes them {width} wide"


def _scorer_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    texts, pictures = configs["scorer"].text.embed_dim, configs["scorer"].image.embed_dim
    if texts != pictures:
        yield f"scorer's texts are {texts} wide", f"scorer's pictures are {pictures} wide"


def _captioner_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    captioner, clip = configs["captioner"], configs["clip"]
    patches, width = patch_feature_shape(clip.image, captioner.levels)
    if (patches, width) != (captioner.patches, captioner.feature_width):
        reads = f"{captioner.patches} x {captioner.feature_width}"
        yield f"captioner reads features of {reads}", f"CLIP makes {patches} x {width}"


def _captioner_tokenizer_misfits(config: Any, tokens: int, length: int) -> Misfits:
    if (tokens, length) != (config.vocab_size, config.context_length):
        yield (
            f"captioner reads {config.vocab_size} words, {config.context_length} a row",
            f"tokenizer beside it has {tokens}, {length}",
        )


def _translator_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    factor = configs["translator"].factor
    if image_size % factor:
        yield f"translator takes multiples of {factor} pixels", f"pictures are {image_size} wide"


def _bank_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    yield from _embedding_misfits("bank", configs)


def _prior_misfits(configs: Mapping[str, Any], image_size: int) -> Misfits:
    yield from _embedding_misfits("prior", configs)


def _embedding_misfits(name: str, configs: Mapping[str, Any]) -> Misfits:
    width, made = configs[name].embed_dim, configs["clip"].image.embed_dim
    if width != made:
        yield f"{name} holds vectors of {width}", f"CLIP's have {made}"


MEMBERS: dict[str, Member] = {  # in the order in which pack.json lists them
    member.name: member
    for member in (
        Member("clip", "CLIP", CLIP, "", _clip_misfits, _clip_tokenizer_misfits, required=True, draws=True),
        Member("vqgan", "VQGAN", VQGAN, "", _vqgan_misfits, required=True, draws=True),
        Member(
            "transformer",
            "code transformer",
            CodeTransformer,
            "use --method guide, with --init random",
            _transformer_misfits,
            draws=True,
        ),
        Member(
            "flow",
            "flow transformer",
            FlowTransformer,
            "train one with codebrush train flow",
            _flow_misfits,
            draws=True,
        ),
        Member(
            "scorer",
            "scorer",
            CLIP,
            "train a CLIP with decoys (recipes/emoji/scorer.yaml) and name its folder in pack.json",
            _scorer_misfits,
            _clip_tokenizer_misfits,
        ),
        Member(
            "captioner",
            "captioner",
            Captioner,
            "train one with codebrush train captioner",
            _captioner_misfits,
            _captioner_tokenizer_misfits,
        ),
        Member("upscaler", "upscaler", Upscaler, "train one with codebrush train upscaler"),
        Member("bank", "bank of pictures", Bank, "name a database of codebrush index", _bank_misfits),
        Member("prior", "learned prior", Prior, "use --prior retrieval or none", _prior_misfits),
        Member(
            "translator",
            "translator",
            Translator,
            "train one with codebrush train translator",
            _translator_misfits,
        ),
    )
}


PAINTERS = {"sample": "transformer", "flow": "flow"}  # what draws: the names of methods, and of their members


def usual_painter_of(members: Collection[str], named: str | None = None) -> str | None:
    """Which of PAINTERS draws with these members unless another is asked for: the `named` one if it is there, else the
    first that is; None if there is none."""
    there = [painter for painter, member in PAINTERS.items() if member in members]
    return named if named in there else next(iter(there), None)


def missing_from(members: Collection[str], name: str) -> str:
    """What to say of a pack that has `members` and not the one of that name, with the remedy."""
    remedy = MEMBERS[name].remedy
    if name == "transformer" and "flow" in members:
        remedy = "it draws by its flow transformer, for which the method is flow"
    return f"has no {MEMBERS[name].label}: {remedy}"


def member_of(model: type[PretrainedModel]) -> Member:
    """The first entry of a class of models: of CLIPs the one that guides. Raises KeyError for a class in no entry."""
    for member in MEMBERS.values():
        if member.model is model:
            return member
    raise KeyError(f"{model.__name__} is not a member of packs: add it to MEMBERS")
