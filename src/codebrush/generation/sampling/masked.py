"""Draws codes with a masked code transformer: in a few steps, each of which fills in codes all over the picture.

The number of codes that are not known yet falls as a cosine (MaskGIT, Chang et al. 2022, section 3.2). Which are next
is told by Halton's sequence, which keeps the codes of one step far from each other: they are drawn without a look at
each other, and neighbours would not fit (Besnier et al. 2025).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.drawing import Known
from codebrush.generation.sampling.weighted_conditions import MAX_ROWS, WeightedConditions
from codebrush.models.code_transformer import UNKNOWN, CodeTransformer
from codebrush.models.sampling import sample
from codebrush.progress import Progress


def fill_codes(
    transformer: CodeTransformer,
    terms: WeightedConditions,
    uniforms: Tensor,
    filters: SamplingFilters,
    *,
    known: Known | None = None,
    bias: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw one picture's codes for each row of `uniforms` (B, N) in [0, 1) -> (B, h, w) int64, in `filters.steps`.

    `terms` are what `guided_terms` gives; the rest is as in `draw_codes`. `progress` counts steps.
    """
    grid = transformer.config.grid
    pictures, steps = max(1, MAX_ROWS // len(terms)), filters.steps
    batches = range(0, len(uniforms), pictures)
    drawn = []
    order = halton_order(grid).to(transformer.device)
    with torch.inference_mode():
        for number, first in enumerate(batches):
            rows = slice(first, min(first + pictures, len(uniforms)))
            codes = _known_codes(known, rows, uniforms.shape[1]).to(transformer.device)  # (B, N)
            own = [(part.rows(rows) if part.batch > 1 else part, share) for part, share in terms]
            own = spread(transformer, own, len(codes))
            missing = codes == UNKNOWN
            waits, count = _place_in_line(missing, order), missing.sum(1, keepdim=True)  # (B, N), (B, 1)
            for step in range(1, steps + 1):
                share = math.cos(math.pi / 2 * step / steps) if step < steps else 0.0
                now = (codes == UNKNOWN) & (waits < count - (share * count).floor())  # (B, N)
                if now.any():  # where fewer codes than steps are missing, some steps have none
                    logits = guided_logits(transformer, own, codes)
                    logits = logits if bias is None else logits + bias.to(logits.device)
                    uniform, f = uniforms[rows].to(now.device)[now], filters
                    codes[now] = sample(logits[now], uniform, f.temperature, f.top_k, f.top_p, f.min_p)
                if progress is not None:
                    progress(number * steps + step, len(batches) * steps)
            drawn.append(codes)
    codes = torch.cat(drawn) if drawn else torch.zeros(0, grid[0] * grid[1], dtype=torch.int64)
    return codes.clone().unflatten(1, grid)  # a copy made out here can take part in autograd


def guided_logits(transformer: CodeTransformer, terms: WeightedConditions, codes: Tensor) -> Tensor:
    """The sum of what a network predicts from each term: codes (B, N) in raster order -> logits (B, N, K) float32.

    The terms are what `spread` gives. A masked network sees all codes that are not UNKNOWN, any other at each place the
    codes that were drawn before it.
    """
    read, places = codes[:, transformer.order], transformer.order.argsort()
    read = read if transformer.config.masked else read[:, :-1]
    total = torch.zeros((), device=codes.device)
    for condition, share in terms:
        total = total + share * transformer(read, condition)[:, places].float()
    return total


def spread(transformer: CodeTransformer, terms: WeightedConditions, pictures: int) -> WeightedConditions:
    """The terms on the network's device, with a row for each of so many pictures."""
    return [(part.to(transformer.device).expand(pictures), share) for part, share in terms]


def _known_codes(known: Known | None, rows: slice, count: int) -> Tensor:
    """The codes (B, N) that some pictures begin with, UNKNOWN where nothing is known."""
    blank = torch.full((rows.stop - rows.start, count), UNKNOWN)
    if known is None:
        return blank
    codes, fixed = (part.flatten(1)[rows if len(part) > 1 else slice(None)] for part in (known.codes, known.fixed))
    return torch.where(fixed, codes, blank.to(codes.device))


def _place_in_line(missing: Tensor, order: Tensor) -> Tensor:
    """How many of the `missing` places (B, N) come before each place in an `order` (N,) of all."""
    ordered = missing[:, order].long()
    return (ordered.cumsum(1) - ordered)[:, order.argsort()]


@lru_cache(maxsize=8)
def halton_order(grid: tuple[int, int]) -> Tensor:
    """The places of a grid (h, w), counted in raster order, as Halton's sequence of bases 2 and 3 visits them: (h w,)
    int64."""
    found: dict[int, None] = {}
    number = 0
    while len(found) < grid[0] * grid[1]:
        row, column = (int(_radical_inverse(number, base) * side) for base, side in zip((2, 3), grid, strict=True))
        found[row * grid[1] + column] = None
        number += 1
    return torch.tensor(list(found))


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number in some base, mirrored at the point: 6 = 110 in base 2 becomes 0.011 = 3 / 8."""
    value, unit = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        unit /= base
        value += digit * unit
    return value
