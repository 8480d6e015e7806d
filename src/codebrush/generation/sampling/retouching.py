"""Retouches drawn pictures: draws their least likely codes again, with all others in view, a few rounds.

A code that was drawn early could not know what would come after it. A painter that fills holes can look at it from all
sides: it draws a SHARE of the codes anew, those that it finds least likely where they are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codebrush.errors import PackError, UsageError
from codebrush.generation.sampling.decoding import draw_codes, empty_condition
from codebrush.generation.sampling.drawing import Drawing, Known
from codebrush.generation.sampling.masked import guided_logits, spread
from codebrush.generation.sampling.weighted_conditions import WeightedConditions, guided_terms
from codebrush.models.code_transformer import UNKNOWN, CodeTransformer
from codebrush.progress import Progress

SHARE = 0.25  # of the codes, drawn again in each round


def retouch_codes(
    transformer: CodeTransformer,
    drawing: Drawing,
    codes: Tensor,
    uniforms: Callable[[int], Tensor],
    progress: Sequence[Progress | None],
) -> Tensor:
    """Draw the least likely of `codes` (B, h, w) again, in `drawing.options.retouch` rounds -> codes (B, h, w).

    `uniforms` gives the random numbers (B, N) of a round, counted from 1; each round reports to one of `progress`.
    Codes that the drawing keeps stay.
    """
    fixed = torch.zeros(1, *codes.shape[1:], dtype=torch.bool) if drawing.known is None else drawing.known.fixed
    for number in range(drawing.options.retouch):
        likely = likelihoods(transformer, drawing, codes)  # (B, h, w)
        again = around(transformer, drawing, Known(codes, ~least_likely(likely, fixed.to(codes.device), SHARE)))
        codes = draw_codes(
            transformer,
            again.conditions,
            uniforms(number + 1),
            drawing.options.filters,
            unconditional=again.unconditional,
            known=again.known,
            progress=progress[number],
        )
    return codes


def around(transformer: CodeTransformer, drawing: Drawing, known: Known) -> Drawing:
    """The drawing around known codes (B or 1, h, w), which a network that reads sources has as its source.

    A masked network sees them as they are, and has no source.
    """
    shown = transformer.config.source_codes and not transformer.config.masked
    return drawing.around(known, empty_condition(transformer, drawing.conditions), shown)


def check_retouching(drawing: Drawing, fills_holes: bool) -> None:
    """Raises PackError if the network fills no holes, UsageError for a drawing that sees all of a source."""
    if not fills_holes:
        raise PackError("this pack's code transformer fills no holes, which retouch needs: train one with hole_share")
    if drawing.known is None and any(part.source_codes is not None for part, _ in drawing.conditions):
        raise UsageError("retouch is not for translations, which see all of another picture: set it to 0")


def least_likely(likely: Tensor, fixed: Tensor, share: float) -> Tensor:
    """Where the least likely `share` of the codes is, rounded up, by log-likelihoods (B, h, w): bool of that shape.

    Those that are `fixed` (B or 1, h, w) do not count.
    """
    fixed = fixed.expand_as(likely)
    wanted = (share * (~fixed).flatten(1).sum(1, keepdim=True)).ceil()  # (B, 1)
    rank = likely.masked_fill(fixed, torch.inf).flatten(1).argsort(dim=1, stable=True).argsort(1)  # (B, N)
    return (rank < wanted).view(likely.shape)


@torch.inference_mode()
def likelihoods(transformer: CodeTransformer, drawing: Drawing, codes: Tensor) -> Tensor:
    """The log-probability (B, h, w) of each of `codes` (B, h, w) under the drawing's conditions, with guidance.

    A masked network sees half of the picture's squares beside each code, any other the codes that were drawn before it.
    """
    empty = drawing.unconditional or empty_condition(transformer, drawing.conditions)
    terms = spread(transformer, guided_terms(drawing.conditions, drawing.options.cfg, empty), len(codes))
    flat = codes.flatten(1)  # (B, N)
    logits = (_seen_by_halves if transformer.config.masked else guided_logits)(transformer, terms, flat)
    return logits.log_softmax(-1).gather(-1, flat[..., None]).view(codes.shape)


def _seen_by_halves(transformer: CodeTransformer, terms: WeightedConditions, codes: Tensor) -> Tensor:
    """Logits (B, N, K) of a masked network for each of `codes` (B, N), of which every second square is hidden."""
    (rows, columns), side = transformer.config.grid, transformer.config.block
    row, column = torch.arange(rows)[:, None] // side, torch.arange(columns)[None] // side
    odd = ((row + column) % 2 == 1).flatten().to(codes.device)  # (N,)
    seen = [guided_logits(transformer, terms, codes.masked_fill(hidden, UNKNOWN)) for hidden in (odd, ~odd)]
    return torch.where(odd[:, None], *seen)
