"""`LoadedPack`: a pack's models on one device, each loaded when it is first used. `Codebrush` adds the tasks."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from codebrush.data.known_texts import KnownTexts
from codebrush.errors import PackError, UsageError
from codebrush.generation.advice import known_labels, reads_english
from codebrush.generation.editing.upscaling import Enlarger
from codebrush.generation.guided.guided_batch import GuidanceModels
from codebrush.generation.guided.guided_request import GuidedRequest
from codebrush.generation.options import BF16, FLOAT16, FLOAT32, INT8, WEIGHTS, DrawOptions
from codebrush.generation.origin import origin
from codebrush.generation.result import Result
from codebrush.generation.sampling.painters import CodePainter, FlowPainter, Painter
from codebrush.generation.sampling.sampler import Sampler
from codebrush.generation.sampling.side_by_side import is_small
from codebrush.generation.scoring import Levels, Scorer
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.layers.packed_linear import can_pack
from codebrush.models.precision import has_bf16, usable_device
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack
from codebrush.text.tokenizer import Tokenizer

LARGE = 50_000_000  # weights from which reading them takes most of the time of a step with few rows
M = TypeVar("M", bound=nn.Module)


class LoadedPack:
    """The models of `pack` on `device` (None: a GPU if there is one), frozen.

    `weights` is how those of the code transformer are stored while it draws: "float32", or on x86 processors "float16",
    which reads half as much and differs by rounding, or "int8", a quarter, whose logits differ by about 1 % (see
    `PackedLinear`). "auto" is float16 for a network of more than LARGE weights there, and else float32. A flow
    multiplies in bfloat16 where that is faster, unless `weights` is "float32".

    Raises:
        UsageError: if the device cannot be used, or has no products for these weights.
        PackError: if a model that is asked for is missing or damaged.
    """

    def __init__(self, pack: Pack, device: str | torch.device | None = None, weights: str = "auto") -> None:
        self.pack = pack
        self.device = usable_device(device)
        self._weights = _checked_weights(weights, self.device)
        self._apart = False

    def for_another_thread(self) -> Self:
        """The same pack, for use in another thread at the same time.

        It shares the weights, but for those of a small code transformer, and gives the same numbers, but has modules of
        its own: the hooks by which a task such as a heat map looks into a model are not seen by the other.
        """
        other = type(self)(self.pack, self.device, self._weights)
        other._apart = True
        return other

    @cached_property
    def weights(self) -> str:
        """How the code transformer's weights are stored while it draws, one of WEIGHTS."""
        if self._weights != "auto":
            return self._weights
        packs = self.device.type == "cpu" and can_pack() and self.pack.has("transformer")
        large = packs and self.pack.config(CodeTransformerConfig).linear_weights > LARGE
        return FLOAT16 if large else FLOAT32

    @cached_property
    def flow_weights(self) -> str:
        """In which numbers the flow multiplies, one of FLOW_WEIGHTS."""
        return BF16 if self._weights != FLOAT32 and has_bf16(self.device) else FLOAT32

    def weights_of(self, painter: str) -> str:
        """How one of PAINTERS stores its weights, or in which numbers it multiplies."""
        return self.flow_weights if painter == "flow" else self.weights

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pack.summary}; on {self.device}>"

    @cached_property
    def clip(self) -> CLIP:
        """The pack's CLIP."""
        return self.on_device(self.pack.clip)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the pack's CLIP."""
        return self.pack.tokenizer

    @cached_property
    def known_texts(self) -> KnownTexts | None:
        """The labels of the pack's bank as help with other words, if its pack.json says that they help: "known_texts".

        None without that, without a bank, or if the pack reads words by other means than the distilled token table.
        """
        helps = self.pack.info.get("known_texts") is True and reads_english(self.pack)
        labels = known_labels(self.pack) if helps else []
        return KnownTexts(self.clip, self.tokenizer, labels) if labels else None

    @cached_property
    def vqgan(self) -> VQGAN:
        """The pack's VQGAN."""
        return self.on_device(self.pack.vqgan)

    @cached_property
    def transformer(self) -> CodeTransformer:
        """The pack's code transformer, as it is stored; of a small one a copy: what is changed there changes no
        drawing."""
        return self._code_painter.plain

    @cached_property
    def scorer(self) -> Scorer | None:
        """The pack's scorer with what its scores mean; None if it has none."""
        if not self.pack.has("scorer"):
            return None
        levels = Levels.of_pack(self.pack.info)
        return Scorer(self.on_device(self.pack.scorer), self.pack.scorer_tokenizer, levels, self.pack.hash_of("scorer"))

    @cached_property
    def sampler(self) -> Sampler:
        """Draws with the pack's code transformer."""
        return self._sampler(self._code_painter)

    @cached_property
    def _code_painter(self) -> CodePainter:
        small = is_small(
            self.pack.config(CodeTransformerConfig).linear_weights, self.device
        )  # the painter keeps another order
        return CodePainter(self.on_device(self.pack.load(CodeTransformer) if small else self.pack.transformer))

    @cached_property
    def flow_sampler(self) -> Sampler:
        """Draws with the pack's flow transformer."""
        return self._sampler(FlowPainter(self.on_device(self.pack.flow), self.vqgan))

    def painter_sampler(self, painter: str) -> Sampler:
        """The sampler of one of PAINTERS. Raises PackError if the pack lacks it."""
        return self.flow_sampler if painter == "flow" else self.sampler

    def guidance_models(self) -> GuidanceModels:
        """What a guided run needs of the pack."""
        drawn: list[Result] = []

        def sample(request: GuidedRequest, pictures: Sequence[int]) -> Tensor:
            """Latents (B, d, h, w) of the best pictures that the pack's painter draws for the run's request."""
            if not drawn:
                values = {name: value for name, value in request.sampling.items() if name != "scorer"}
                painter = self.painter_sampler("flow" if values.get("flow") else "sample")
                sampler = replace(painter, scorer=_scorer_of(self, request))
                drawn.extend(sampler.sample(request.prompt, DrawOptions(n=request.n, seed=request.seed, **values)))
            return torch.stack([drawn[index].latent for index in pictures])

        size, about = self.pack.image_size, origin(self.pack, self.device)
        return GuidanceModels(self.vqgan, self.clip, self.tokenizer, size, sample, self.scorer, about)

    def _sampler(self, painter: Painter) -> Sampler:
        return Sampler(self.pack, self.clip, self.tokenizer, self.vqgan, painter, self.device, self.scorer)

    @cached_property
    def enlarger(self) -> Enlarger:
        """Enlarges with the pack's upscaler."""
        return Enlarger(self.on_device(self.pack.upscaler), self.pack)

    def on_device(self, model: M) -> M:
        """`model` on this device, frozen."""
        model = model.to(self.device).requires_grad_(False)
        return _with_shared_weights(model) if self._apart else model


def _scorer_of(loaded: LoadedPack, request: GuidedRequest) -> Scorer | None:
    """The scorer that chose the pictures which a run starts from; None for CLIP, as in versions before 0.3.

    Raises:
        PackError: if the pack has another one now.
    """
    digest = request.sampling.get("scorer")
    if digest is None:
        return None
    if loaded.scorer is None or loaded.scorer.digest != digest:
        raise PackError(f"made with another scorer than that of the pack '{loaded.pack.name}': open the pack as it was")
    return loaded.scorer


def _checked_weights(weights: str, device: torch.device) -> str:
    """`weights`, unless this device cannot draw with them. Raises UsageError then, or if they are unknown."""
    if weights not in ("auto", *WEIGHTS):
        raise UsageError(f"weights must be auto, {', '.join(WEIGHTS)}, not {weights}")
    if weights in (FLOAT16, INT8) and not (device.type == "cpu" and can_pack()):
        raise UsageError(f"weights in {weights} are for x86 processors, and this is {device.type}: use float32")
    return weights


def _with_shared_weights(model: M) -> M:
    """Modules like those of `model`, around the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
