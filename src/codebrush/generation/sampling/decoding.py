"""A condition and random numbers in, codes (B, h, w) out: code after code, with a key-value cache.

Each picture owns its random numbers, so it comes out the same whoever shares its batch (but for rounding). Codes that
are known are taken as they are; a network that is shown them all as its source knows those below a hole as well as
those above. A grid larger than the network's is drawn through a window that moves over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.models.code_cache import CodeCache
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.sampling import sample
from codebrush.progress import Progress

MAX_ROWS = 64  # of a batch in the transformer: more gain little speed and cost memory

WeightedConditions = Sequence[tuple[Condition, float]]


def picture_uniforms(seed: int, indices: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), (len(indices), count) float64: for each picture of a run the stream of (seed,
    index).

    The index is the key of a child stream and not part of the seed, so no two runs have a picture in common.
    """
    streams = (np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,))) for index in indices)
    return torch.from_numpy(np.stack([stream.random(count) for stream in streams]))


@dataclass(frozen=True)
class Known:
    """Codes (B, h, w) int64 and where they are to stay (B, h, w) bool; one row may serve every picture."""

    codes: Tensor
    fixed: Tensor

    def at(self, position: int, pictures: slice, drawn: Tensor) -> Tensor:
        """`drawn` (B,) for some `pictures`, but for those whose code at `position` stays."""
        codes, fixed = (
            part.flatten(1)[pictures if len(part) > 1 else slice(None), position] for part in (self.codes, self.fixed)
        )
        return torch.where(fixed.to(drawn.device), codes.to(drawn.device), drawn)


def draw_codes(
    transformer: CodeTransformer,
    condition: Condition | WeightedConditions,
    uniforms: Tensor,
    *,
    cfg: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    without: Condition | None = None,
    known: Known | None = None,
    bias: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw one picture's codes for each row of `uniforms` (B, N) in [0, 1) -> (B, h, w) int64.

    `condition` has B rows, or one that all pictures share; or there are several with weights, and the
    logits are null + cfg * sum_i w_i (condition_i - null): classifier-free guidance (Ho and Salimans 2022)
    composed as by Liu et al. 2022, where a negative weight leads away. What has no share in that sum (the
    null at cfg 1 with weights that sum to 1) is not computed. `without` is the null where it is not nothing, as of a
    source that every term has. `bias` (N, K) is added to the logits of each place. See
    `codebrush.models.sampling.sample` for the other options.
    """
    terms = guided_terms(transformer, condition, cfg, without)
    pictures = max(1, MAX_ROWS // len(terms))
    batches = range(0, len(uniforms), pictures)
    steps = len(batches) * transformer.config.code_count
    drawn = []
    with torch.inference_mode():
        for number, first in enumerate(batches):
            rows = slice(first, min(first + pictures, len(uniforms)))
            drawer = _Drawer(transformer, terms, rows)
            for step, position in enumerate(transformer.order.tolist()):
                pull = None if bias is None else bias[position]
                code = drawer.draw(uniforms[rows, position], temperature, top_k, top_p, min_p, pull)
                drawer.take(code if known is None else known.at(position, rows, code))
                if progress is not None:
                    progress(number * transformer.config.code_count + step + 1, steps)
            drawn.append(drawer.codes())
    grid = transformer.config.grid
    codes = torch.cat(drawn) if drawn else torch.zeros(0, grid[0] * grid[1], dtype=torch.int64)
    return codes.clone().unflatten(1, grid)  # a copy made out here can take part in autograd


def guided_terms(
    transformer: CodeTransformer, condition: Condition | WeightedConditions, cfg: float, without: Condition | None
) -> list[tuple[Condition, float]]:
    """The conditions whose logits are added up, each with its share of classifier-free guidance."""
    weighted = [(condition, 1.0)] if isinstance(condition, Condition) else list(condition)
    shares = [cfg * weight for _, weight in weighted]
    terms = [(part, share) for (part, _), share in zip(weighted, shares, strict=True) if share]
    null_share = 1.0 - sum(shares)
    if null_share or not terms:
        # Where padding is hidden from attention, it stays so without the text.
        mask = weighted[0][0].text_mask if transformer.config.hide_padding else None
        terms.append((without or Condition(text_mask=mask), null_share))
    return _of_one_length(terms)


def _of_one_length(terms: list[tuple[Condition, float]]) -> list[tuple[Condition, float]]:
    """Where one term has a source, those without are given one that shows nothing, as all stand in one batch."""
    sources = [part.source_codes for part, _ in terms if part.source_codes is not None]
    if not sources or len(sources) == len(terms):
        return terms
    blank = torch.zeros_like(sources[0][:1])
    nothing = {"source_codes": blank, "source_mask": blank.bool()}
    return [
        (part if part.source_codes is not None else replace(part, **nothing).expand(part.batch), share)
        for part, share in terms
    ]


def draw_large(
    transformer: CodeTransformer,
    condition: Condition | WeightedConditions,
    uniforms: Tensor,
    grid: tuple[int, int],
    *,
    cfg: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    progress: Progress | None = None,
) -> Tensor:
    """Draw codes (B, H, W) of a `grid` of any size from `uniforms` (B, H * W), as `draw_codes` does where it fits.

    Each block of codes is drawn through a window of the network's own grid with the block in its middle, or as near to
    it as the border lets (Esser et al. 2021, section 3.3); what the window shows of the codes before is read again for
    each. A side shorter than the network's own, or of no whole blocks, is a UsageError: cut a larger picture.
    """
    own, side, options = transformer.config.grid, transformer.config.block, (temperature, top_k, top_p, min_p)
    if grid[0] < own[0] or grid[1] < own[1]:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} codes is smaller than the network's {own[0]} x {own[1]}")
    if grid[0] % side or grid[1] % side:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} codes has no whole blocks of {side} x {side}")
    if grid == own:
        filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        return draw_codes(transformer, condition, uniforms, cfg=cfg, **filters, progress=progress)
    terms = guided_terms(transformer, condition, cfg, None)
    codes = torch.zeros(len(uniforms), *grid, dtype=torch.int64, device=transformer.device)
    pictures, steps = max(1, MAX_ROWS // len(terms)), grid[0] * grid[1]
    places, turns = _places(grid, side), transformer.order.argsort().tolist()  # of each place of a window
    starts = range(0, len(uniforms), pictures)
    with torch.inference_mode():
        for number, first in enumerate(starts):
            rows = slice(first, min(first + pictures, len(uniforms)))
            for step, (row, column) in enumerate(places):
                window, place = window_of((row, column), grid, own, side)
                shown = codes[rows][:, window[0], window[1]].flatten(1)  # (B, N), by places
                before = shown[:, transformer.order[: turns[place]]]
                parts = [share * _next(transformer, before, part, rows) for part, share in terms]
                logits = torch.stack(parts).sum(0)  # (B, K)
                codes[rows, row, column] = sample(logits, uniforms[rows, row * grid[1] + column], *options)
                if progress is not None:
                    progress(number * steps + step + 1, len(starts) * steps)
    return codes.clone()


def _places(grid: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """All rows and columns of `grid`, block of `side` after block, as the network writes them."""
    blocks = product(range(0, grid[0], side), range(0, grid[1], side))
    return [(top + row, left + column) for top, left in blocks for row in range(side) for column in range(side)]


def window_of(
    place: tuple[int, int], grid: tuple[int, int], own: tuple[int, int], side: int = 1
) -> tuple[tuple[slice, slice], int]:
    """Rows and columns of `grid` that a window of size `own` shows around a `place`, and the place's number in it. The
    window begins where a block of `side` does."""
    firsts = [
        min(max(0, at // side - length // side // 2), (whole - length) // side) * side
        for at, whole, length in zip(place, grid, own, strict=True)
    ]
    inside = [at - first for at, first in zip(place, firsts, strict=True)]
    rows, columns = (slice(first, first + length) for first, length in zip(firsts, own, strict=True))
    return (rows, columns), inside[0] * own[1] + inside[1]


def _next(transformer: CodeTransformer, before: Tensor, condition: Condition, pictures: slice) -> Tensor:
    """Logits (B, K) float32 of the code after `before` (B, n)."""
    if condition.batch > 1:
        condition = condition.rows(pictures)
    return transformer(before, condition.to(transformer.device).expand(len(before)))[:, -1].float()


class _Drawer:
    """The pictures of one batch in the making. In the cache all pictures of a term stand side by side."""

    def __init__(self, transformer: CodeTransformer, terms: WeightedConditions, pictures: slice) -> None:
        self.transformer = transformer
        self.count = pictures.stop - pictures.start
        device = transformer.device
        self.shares = torch.tensor([share for _, share in terms], device=device)
        prefixes = [_read_prefix(transformer, condition.to(device), pictures) for condition, _ in terms]
        self.cache = CodeCache.merge([cache for _, cache in prefixes], self.count)
        self.logits = torch.cat([logits[:, -1].expand(self.count, -1) for logits, _ in prefixes])  # (terms B, K)
        self.drawn: list[Tensor] = []

    def draw(
        self, uniform: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, bias: Tensor | None = None
    ) -> Tensor:
        """The next code (B,) of every picture, drawn with `uniform` (B,); `bias` (K,) is added to its logits."""
        if self.drawn:
            new = self.drawn[-1].repeat(len(self.shares)).unsqueeze(1)  # (terms B, 1)
            self.logits = self.transformer.step(new, self.cache)[:, -1]
        terms = self.logits.float().unflatten(0, (-1, self.count))  # (terms, B, K)
        logits = torch.einsum("t,tbk->bk", self.shares, terms)
        logits = logits if bias is None else logits + bias.to(logits.device)
        return sample(logits, uniform, temperature, top_k, top_p, min_p)

    def take(self, codes: Tensor) -> None:
        """Go on from these next codes (B,)."""
        self.drawn.append(codes)

    def codes(self) -> Tensor:
        """What has been drawn, (B, N), in raster order."""
        return torch.stack(self.drawn, dim=1)[:, self.transformer.order.argsort()]


def _read_prefix(transformer: CodeTransformer, condition: Condition, pictures: slice) -> tuple[Tensor, CodeCache]:
    """The first logits (rows, 1, K) and the cache of a condition: one row where all pictures share it."""
    shared = condition.batch == 1
    condition = condition if shared else condition.rows(pictures)
    rows = 1 if shared else pictures.stop - pictures.start
    return transformer.prefill(torch.zeros(rows, 0, dtype=torch.int64, device=transformer.device), condition)
