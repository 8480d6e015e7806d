"""Which conditions classifier-free guidance adds up, and with which factors."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codebrush.models.condition import Condition

WeightedConditions = Sequence[tuple[Condition, float]]
MAX_ROWS = 64  # of a batch in the transformer: more gain little speed and cost memory


def guided_terms(
    condition: Condition | WeightedConditions, cfg: float, unconditional: Condition
) -> list[tuple[Condition, float]]:
    """The conditions whose predictions are added up, each with its factor.

    Several conditions with weights w_i give u + cfg * sum_i w_i (c_i - u), where c_i are a condition's predictions and
    u those of `unconditional`: classifier-free guidance (Ho and Salimans 2022), composed as by Liu et al. 2022; a
    negative weight leads away. What has no share in that sum (u at cfg 1, if the weights add up to 1) is left out.
    """
    weighted = [(condition, 1.0)] if isinstance(condition, Condition) else list(condition)
    shares = [cfg * weight for _, weight in weighted]
    terms = [(part, share) for (part, _), share in zip(weighted, shares, strict=True) if share]
    unconditional_share = 1.0 - sum(shares)
    if unconditional_share or not terms:
        terms.append((unconditional, unconditional_share))
    return _of_one_length(terms)


def rows_of(condition: Condition, rows: Tensor | slice) -> Condition:
    """The condition of some pictures of a batch; one that all share stays as it is."""
    return condition if condition.batch == 1 else condition.rows(rows)


def _of_one_length(terms: list[tuple[Condition, float]]) -> list[tuple[Condition, float]]:
    """If only some terms have a source, the others get one that shows nothing: all share one batch."""
    sources = [part.source_codes for part, _ in terms if part.source_codes is not None]
    if not sources or len(sources) == len(terms):
        return terms
    blank = torch.zeros_like(sources[0][:1])
    nothing = {"source_codes": blank, "source_mask": blank.bool()}
    return [
        (part if part.source_codes is not None else replace(part, **nothing).expand(part.batch), share)
        for part, share in terms
    ]
