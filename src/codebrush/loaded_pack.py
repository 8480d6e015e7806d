"""`LoadedPack`: a pack's models on one device, each loaded when it is first used. `Codebrush` adds the tasks."""

from functools import cached_property
from typing import TypeVar

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
        return model.to(self.device).requires_grad_(False)
