"""What the code transformer keeps of pictures it is drawing, so that a step reads the new codes alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codebrush.models.layers.attention import KVCache
from codebrush.models.layers.transformer import Modulated


@dataclass
class CodeCache:
    """The state between two steps of `CodeTransformer`, made by `CodeTransformer.prefill`. B rows, one a drawing."""

    attention: KVCache  # keys and values of the prefix and of all whole blocks
    prefix: int  # how many of the tokens in `attention` come before the first block
    mask: Tensor | None  # (B, n) bool: which of the n tokens in `attention` may be attended to; None: all
    source: Tensor | None  # (B, N / M, D): what an aligned source adds where each block is predicted
    vector: Tensor | None  # (B, D): what modulates the blocks
    hidden: Tensor  # (B, 1, D): what predicts the block that is being written
    open: Tensor  # (B, m) int64: the codes of that block so far, m < M
    modulated: dict[int, Modulated] = field(default_factory=dict)  # see `Block.forward`

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` (n,) int64, in that order; a row may come several times."""
        self.attention.select(rows)
        self.mask = None if self.mask is None else self.mask[rows]
        self.source = None if self.source is None else self.source[rows]
        self.vector = None if self.vector is None else self.vector[rows]
        self.hidden, self.open = self.hidden[rows], self.open[rows]
        self.modulated = {}

    @classmethod
    def merge(cls, caches: Sequence["CodeCache"], rows: int) -> "CodeCache":
        """Caches of one network and of the same length as one batch, the rows of the first before those of the second.

        A cache of one row is repeated `rows` times, so that every cache has that many.
        """
        masks = [_mask(cache) for cache in caches] if any(cache.mask is not None for cache in caches) else None
        sources = [cache.source for cache in caches if cache.source is not None]  # of one network: of all or none
        vectors = [cache.vector for cache in caches if cache.vector is not None]  # likewise
        return cls(
            attention=KVCache.merge([cache.attention for cache in caches], rows),
            prefix=caches[0].prefix,
            mask=None if masks is None else _joined(masks, rows),
            source=_joined(sources, rows) if sources else None,
            vector=_joined(vectors, rows) if vectors else None,
            hidden=_joined([cache.hidden for cache in caches], rows),
            open=_joined([cache.open for cache in caches], rows),
        )


def _mask(cache: CodeCache) -> Tensor:
    if cache.mask is not None:
        return cache.mask
    return torch.ones(len(cache.hidden), cache.attention.length, dtype=torch.bool, device=cache.hidden.device)


def _joined(parts: Sequence[Tensor], rows: int) -> Tensor:
    return torch.cat([part.expand(rows, *part.shape[1:]) if len(part) == 1 else part for part in parts])
