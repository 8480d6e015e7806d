"""Draws the codes of several prompts in one batch, each with the very codes that it has when it is drawn alone.

What a row of a product comes to may depend, in its last bits, on how many rows the batch has. So all that is cheap is
computed for each prompt as if it were alone: the prefix, the sum of guidance, the choice of a code. Only the
transformer's steps are taken together, and the first of them also one by one: if a single bit differs on this machine,
each prompt is drawn on alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.decoding import MAX_ROWS, Drawer, empty_condition
from codebrush.generation.sampling.weighted_conditions import WeightedConditions, guided_terms
from codebrush.models.code_cache import CodeCache
from codebrush.models.code_transformer import CodeTransformer
from codebrush.progress import Progress


@dataclass(frozen=True)
class Asked:
    """Pictures of one prompt: conditions of one row each, and random numbers (B, N) in [0, 1)."""

    conditions: WeightedConditions
    uniforms: Tensor
    filters: SamplingFilters


def rows_of(transformer: CodeTransformer, asked: Asked) -> int:
    """How many rows the pictures of a prompt take in a batch."""
    terms = guided_terms(asked.conditions, asked.filters.cfg, empty_condition(transformer, asked.conditions))
    return len(terms) * len(asked.uniforms)


def in_batches(rows: Sequence[int], most: int = MAX_ROWS) -> list[list[int]]:
    """The numbers of prompts that take so many `rows` each, in order, divided into batches of up to `most` rows; a
    prompt of more is a batch of its own."""
    found: list[list[int]] = []
    for number, own in enumerate(rows):
        if found and sum(rows[other] for other in found[-1]) + own <= most:
            found[-1].append(number)
        else:
            found.append([number])
    return found


@torch.inference_mode()
def draw_together(
    transformer: CodeTransformer,
    asked: Sequence[Asked],
    progress: Progress | None = None,
    looks: Sequence[Callable[[int, Tensor], None]] = (),
) -> list[Tensor]:
    """Draw one batch: for each prompt its codes (B, h, w) int64, equal to those of `draw_codes` for it alone.

    A prompt of more than `MAX_ROWS` rows is not for this function. `progress` counts codes. `looks` is empty, or
    has one for each prompt, which is called after each code with the number of codes and those (B, h, w) so far.
    """
    drawers = []
    for each in asked:
        terms = guided_terms(each.conditions, each.filters.cfg, empty_condition(transformer, each.conditions))
        drawers.append(Drawer(transformer, terms, slice(0, len(each.uniforms))))
    count, grid = transformer.config.code_count, transformer.config.grid
    steps = _Steps(transformer, drawers)
    for number, position in enumerate(transformer.order.tolist()):
        if number:
            steps.take()
        for each, drawer in zip(asked, drawers, strict=True):
            drawer.take(drawer.draw(each.uniforms[:, position], each.filters))
        if progress is not None:
            progress(number + 1, count)
        for look, drawer in zip(looks, drawers, strict=False):
            look(number + 1, drawer.so_far())
    return [drawer.codes().unflatten(1, grid).clone() for drawer in drawers]


class _Steps:
    """Takes the transformer's steps for all drawers at once while that changes no bit of their logits."""

    def __init__(self, transformer: CodeTransformer, drawers: Sequence[Drawer]) -> None:
        self.transformer, self.drawers = transformer, drawers
        self.unchecked = transformer.config.block_size + 1  # steps: within a block they differ from each other
        caches = [drawer.cache for drawer in drawers]
        self.together = CodeCache.merge(caches, 1) if len(drawers) > 1 and _alike(caches) else None

    def take(self) -> None:
        """Take the step after the codes that each drawer took last."""
        if self.together is None:
            for drawer in self.drawers:
                drawer.step()
            return
        new = torch.cat([drawer.new for drawer in self.drawers])  # (rows, 1)
        logits = self.transformer.step(new, self.together)[:, -1]  # (rows, K)
        parts = logits.split([len(drawer.new) for drawer in self.drawers])
        if not self.unchecked:
            for drawer, part in zip(self.drawers, parts, strict=True):
                drawer.logits = part
            return
        self.unchecked -= 1
        for drawer in self.drawers:
            drawer.step()
        if not all(same_bits(drawer.logits, part) for drawer, part in zip(self.drawers, parts, strict=True)):
            self.together = None


def same_bits(alone: Tensor, together: Tensor) -> bool:
    """Whether logits of a batch are those of the rows alone."""
    return torch.equal(alone, together)


def _alike(caches: Sequence[CodeCache]) -> bool:
    """Whether caches can be rows of one: of the same length, and all with a mask or none."""
    return len({(cache.attention.length, cache.prefix, cache.mask is None) for cache in caches}) == 1
