"""`LoadedPack`: a pack's models on one device, each loaded when it is first used. `Codebrush` adds the tasks."""

import copy
from functools import cached_property
from itertools import chain
from typing import Self, TypeVar

import torch
from torch import nn

from codebrush.generation.editing.upscaling import Enlarger
from codebrush.generation.sampling.painters import CodePainter, FlowPainter, Painter
from codebrush.generation.sampling.sampler import Sampler
from codebrush.generation.scoring import Levels, Scorer
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.precision import usable_device
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack
from codebrush.text.tokenizer import Tokenizer

M = TypeVar("M", bound=nn.Module)


class LoadedPack:
    """The models of `pack` on `device` (None: a GPU if there is one), frozen.

    Raises:
        UsageError: if the device cannot be used.
        PackError: if a model that is asked for is missing or damaged.
    """

    def __init__(self, pack: Pack, device: str | torch.device | None = None) -> None:
        self.pack = pack
        self.device = usable_device(device)
        self._apart = False

    def for_another_thread(self) -> Self:
        """The same pack, for use in another thread at the same time.

        It shares the weights and gives the same numbers, but has modules of its own: the hooks by which a task such as
        a heat map looks into a model are not seen by the other.
        """
        other = type(self)(self.pack, self.device)
        other._apart = True
        return other

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
    def vqgan(self) -> VQGAN:
        """The pack's VQGAN."""
        return self.on_device(self.pack.vqgan)

    @cached_property
    def transformer(self) -> CodeTransformer:
        """The pack's code transformer."""
        return self.on_device(self.pack.transformer)

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
        return self._sampler(CodePainter(self.transformer))

    @cached_property
    def flow_sampler(self) -> Sampler:
        """Draws with the pack's flow transformer."""
        return self._sampler(FlowPainter(self.on_device(self.pack.flow), self.vqgan))

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


def _with_shared_weights(model: M) -> M:
    """Modules like those of `model`, around the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
