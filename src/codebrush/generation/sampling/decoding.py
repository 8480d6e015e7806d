"""Draws codes from a condition with the code transformer, one code after another, with a key-value cache.

Each picture has its own random numbers, so it comes out the same whoever shares its batch (up to rounding). Known codes
are kept as they are; a network that also reads them as its source sees those below a hole as well as those above. A
grid larger than the network's is drawn through a moving window.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.drawing import Known
from codebrush.generation.sampling.half_drawn import Look, undrawn
from codebrush.generation.sampling.masked import fill_codes
from codebrush.generation.sampling.side_by_side import (
    draws_side_by_side,
    most_rows,
    parts_of,
    run_side_by_side,
    slices_of,
)
from codebrush.generation.sampling.weighted_conditions import MAX_ROWS, WeightedConditions, guided_terms
from codebrush.generation.seeding import stream
from codebrush.models.code_cache import CodeCache
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.sampling import sample
from codebrush.progress import Progress, shares, silent

PLAIN = SamplingFilters()  # no guidance, no filter


def picture_uniforms(seed: int, indices: Sequence[int], count: int, *key: int) -> Tensor:
    """Numbers in [0, 1), (len(indices), count) float64: for each picture of a run, those of the stream (seed, index,
    key).

    The index is the key of a child stream and not added to the seed, so no two runs have a picture in common.
    """
    return torch.from_numpy(np.stack([stream(seed, index, *key).random(count) for index in indices]))


def draw_codes(
    transformer: CodeTransformer,
    condition: Condition | WeightedConditions,
    uniforms: Tensor,
    filters: SamplingFilters = PLAIN,
    *,
    unconditional: Condition | None = None,
    known: Known | None = None,
    bias: Tensor | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> Tensor:
    """Draw one picture's codes for each row of `uniforms` (B, N) in [0, 1) -> (B, h, w) int64.

    `condition` has B rows, or one row that all pictures share; several conditions with weights are added up as
    `guided_terms` says, and `unconditional` None is the empty condition.
    `bias` (N, K) is added to the logits of each position; `known` codes are not drawn. `look` gets what is drawn so
    far, after each code. A masked network draws many at once, without `look`; see `fill_codes`.
    """
    terms = guided_terms(condition, filters.cfg, unconditional or empty_condition(transformer, condition))
    if transformer.config.masked:
        return fill_codes(transformer, terms, uniforms, filters, known=known, bias=bias, progress=progress)
    most = max(1, MAX_ROWS // len(terms))  # pictures of a batch

    def job(rows: slice) -> Callable[[Progress], Tensor]:
        return lambda report: _draw_batch(transformer, terms, uniforms, rows, filters, known, bias, report, look)

    if draws_side_by_side(transformer):
        parts = max(-(-len(uniforms) // max(1, most_rows() // len(terms))), parts_of(len(terms) * len(uniforms)))
        drawn = run_side_by_side([job(rows) for rows in slices_of(len(uniforms), parts)], progress)
    else:
        jobs = [job(slice(first, min(first + most, len(uniforms)))) for first in range(0, len(uniforms), most)]
        drawn = [job(share or silent) for job, share in zip(jobs, shares(progress, len(jobs)), strict=True)]
    grid = transformer.config.grid
    codes = torch.cat(drawn) if drawn else torch.zeros(0, grid[0] * grid[1], dtype=torch.int64)
    return codes.clone().unflatten(1, grid)  # a copy made out here can take part in autograd


@torch.inference_mode()
def _draw_batch(
    transformer: CodeTransformer,
    terms: WeightedConditions,
    uniforms: Tensor,
    rows: slice,
    filters: SamplingFilters,
    known: Known | None,
    bias: Tensor | None,
    progress: Progress,
    look: Look | None,
) -> Tensor:
    """The codes (b, N) of the b pictures `rows` of `uniforms`; the rest is as in `draw_codes`."""
    drawer = Drawer(transformer, terms, rows)
    for step, position in enumerate(transformer.order.tolist()):
        if step:
            drawer.step()
        code = drawer.draw(uniforms[rows, position], filters, None if bias is None else bias[position])
        drawer.take(code if known is None else known.at(position, rows, code))
        progress(step + 1, transformer.config.code_count)
        if look is not None:
            look(step + 1, rows.start, drawer.so_far())
    return drawer.codes()


def empty_condition(transformer: CodeTransformer, condition: Condition | WeightedConditions) -> Condition:
    """The empty condition beside `condition`. Where padding is hidden from attention, it stays so without the text."""
    first = condition if isinstance(condition, Condition) else condition[0][0]
    return Condition(text_mask=first.text_mask if transformer.config.hide_padding else None)


def draw_large(
    transformer: CodeTransformer,
    condition: Condition | WeightedConditions,
    uniforms: Tensor,
    grid: tuple[int, int],
    filters: SamplingFilters = PLAIN,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Draw codes (B, H, W) of a `grid` (H, W) larger than the network's, from `uniforms` (B, H * W).

    Each block of codes is drawn through a window of the network's own size with the block in its middle, or as near to
    it as the border allows (Esser et al. 2021, section 3.3); the window's earlier codes are read again for each. A
    `grid` of the network's own size is left to `draw_codes`.

    Raises:
        UsageError: if a side is shorter than the network's own, or holds no whole number of blocks.
    """
    own, side = transformer.config.grid, transformer.config.block
    if grid[0] < own[0] or grid[1] < own[1]:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} codes is smaller than the network's {own[0]} x {own[1]}")
    if grid[0] % side or grid[1] % side:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} codes has no whole blocks of {side} x {side}")
    if grid == own:
        return draw_codes(transformer, condition, uniforms, filters, progress=progress)
    terms = guided_terms(condition, filters.cfg, empty_condition(transformer, condition))
    codes = torch.zeros(len(uniforms), *grid, dtype=torch.int64, device=transformer.device)
    pictures, steps = max(1, MAX_ROWS // len(terms)), grid[0] * grid[1]
    places, written_as = _places(grid, side), transformer.order.argsort().tolist()  # a window's place -> its turn
    starts = range(0, len(uniforms), pictures)
    with torch.inference_mode():
        for number, first in enumerate(starts):
            rows = slice(first, min(first + pictures, len(uniforms)))
            for step, (row, column) in enumerate(places):
                window, place = window_of((row, column), grid, own, side)
                shown = codes[rows][:, window[0], window[1]].flatten(1)  # (B, N), by places
                before = shown[:, transformer.order[: written_as[place]]]
                parts = [share * _next(transformer, before, part, rows) for part, share in terms]
                logits = torch.stack(parts).sum(0)  # (B, K)
                codes[rows, row, column] = _choose(logits, uniforms[rows, row * grid[1] + column], filters)
                if progress is not None:
                    progress(number * steps + step + 1, len(starts) * steps)
    return codes.clone()


def _choose(logits: Tensor, uniform: Tensor, filters: SamplingFilters) -> Tensor:
    """Guided logits (B, K) and `uniform` (B,) -> codes (B,)."""
    return sample(logits, uniform, filters.temperature, filters.top_k, filters.top_p, filters.min_p)


def _places(grid: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Row and column of each place in `grid`, in the order of writing: one block of `side` x `side` after another."""
    blocks = product(range(0, grid[0], side), range(0, grid[1], side))
    return [(top + row, left + column) for top, left in blocks for row in range(side) for column in range(side)]


def window_of(
    place: tuple[int, int], grid: tuple[int, int], own: tuple[int, int], side: int = 1
) -> tuple[tuple[slice, slice], int]:
    """Rows and columns of `grid` that a window of size `own` shows around `place`, and the place's number in the window
    in raster order. The window starts where a block of `side` x `side` starts."""
    firsts = [
        min(max(0, at // side - length // side // 2), (whole - length) // side) * side
        for at, whole, length in zip(place, grid, own, strict=True)
    ]
    inside = [at - first for at, first in zip(place, firsts, strict=True)]
    rows, columns = (slice(first, first + length) for first, length in zip(firsts, own, strict=True))
    return (rows, columns), inside[0] * own[1] + inside[1]


def _next(transformer: CodeTransformer, before: Tensor, condition: Condition, pictures: slice) -> Tensor:
    """Logits (B, K) float32 of the code that follows `before` (B, n)."""
    if condition.batch > 1:
        condition = condition.rows(pictures)
    return transformer(before, condition.to(transformer.device).expand(len(before)))[:, -1].float()


class Drawer:
    """Draws the codes of one batch of pictures: `draw`, `take`, `step`, and again.

    The cache's rows are all pictures of the first term, then the next.
    """

    def __init__(self, transformer: CodeTransformer, terms: WeightedConditions, pictures: slice) -> None:
        self.transformer = transformer
        self.count = pictures.stop - pictures.start
        device = transformer.device
        self.shares = torch.tensor([share for _, share in terms], device=device)
        prefixes = [_read_prefix(transformer, condition.to(device), pictures) for condition, _ in terms]
        self.cache = CodeCache.merge([cache for _, cache in prefixes], self.count)
        self.logits = torch.cat([logits[:, -1].expand(self.count, -1) for logits, _ in prefixes])  # (terms B, K)
        self.drawn: list[Tensor] = []

    def draw(self, uniform: Tensor, filters: SamplingFilters, bias: Tensor | None = None) -> Tensor:
        """The next code (B,) of every picture, drawn with `uniform` (B,); `bias` (K,) is added to its logits."""
        terms = self.logits.float().unflatten(0, (-1, self.count))  # (terms, B, K)
        logits = torch.einsum("t,tbk->bk", self.shares, terms)
        logits = logits if bias is None else logits + bias.to(logits.device)
        return _choose(logits, uniform, filters)

    def take(self, codes: Tensor) -> None:
        """Continue from these next codes (B,)."""
        self.drawn.append(codes)

    @property
    def new(self) -> Tensor:
        """The codes taken last, (terms B, 1), as the transformer's next step reads them."""
        return self.drawn[-1].repeat(len(self.shares)).unsqueeze(1)

    def step(self) -> None:
        """Predict the code after the one taken last."""
        self.logits = self.transformer.step(self.new, self.cache)[:, -1]

    def so_far(self) -> Tensor:
        """The codes (B, h, w), UNDRAWN where there is none yet."""
        grid, order = self.transformer.config.grid, self.transformer.order
        codes = undrawn(self.count, grid, order.device).flatten(1)
        codes[:, order[: len(self.drawn)]] = torch.stack(self.drawn, dim=1)  # (B, n)
        return codes.unflatten(1, grid)

    def codes(self) -> Tensor:
        """The codes drawn, (B, N), in raster order."""
        return torch.stack(self.drawn, dim=1)[:, self.transformer.order.argsort()]


def _read_prefix(transformer: CodeTransformer, condition: Condition, pictures: slice) -> tuple[Tensor, CodeCache]:
    """A condition's first logits (rows, 1, K) and cache: one row if all pictures share it."""
    shared = condition.batch == 1
    condition = condition if shared else condition.rows(pictures)
    rows = 1 if shared else pictures.stop - pictures.start
    return transformer.prefill(torch.zeros(rows, 0, dtype=torch.int64, device=transformer.device), condition)
