"""What is to be drawn: a prompt or an edit, prepared for a painter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.generation.manifest import SAMPLED
from codebrush.generation.options import DrawOptions
from codebrush.generation.sampling.flow import Lead, Start, own_rows
from codebrush.generation.sampling.half_drawn import Look
from codebrush.models.condition import Condition


@dataclass(frozen=True)
class Known:
    """Codes (B, h, w) int64, and where they are kept, (B, h, w) bool; one row may serve every picture."""

    codes: Tensor
    fixed: Tensor

    def rows(self, rows: slice) -> "Known":
        """What is known of some pictures of a batch."""
        return Known(own_rows(self.codes, rows), own_rows(self.fixed, rows))

    def at(self, position: int, pictures: slice, drawn: Tensor) -> Tensor:
        """`drawn` (B,) for some `pictures`, with the known code where the one at `position` is kept."""
        codes, fixed = (
            part.flatten(1)[pictures if len(part) > 1 else slice(None), position] for part in (self.codes, self.fixed)
        )
        return torch.where(fixed.to(drawn.device), codes.to(drawn.device), drawn)


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn: weighted conditions for the painter; unit embeddings (P, E) that CLIP scores by.

    `judged_by` (P, E) are those of the pack's scorer, None if it has none or the drawing has no text. `known` codes are
    kept. `unconditional` is what classifier-free guidance leads away from; None is the empty condition. A flow alone
    knows a `start`, `noise` (B, d, h, w) in place of each picture's own, and what `lead`s the pictures of a range;
    codes alone know a `bias` (N, K), which is added to the logits of each position. `look` gets what is drawn so
    far, code after code. `to_score` turns a drawn picture into what CLIP scores, and `finish` into what is kept.
    `entry` is the method and its details in the manifest.
    """

    prompt: str
    options: DrawOptions
    conditions: list[tuple[Condition, float]]
    texts: Tensor
    weights: list[float]
    judged_by: Tensor | None = None
    known: Known | None = None
    start: Start | None = None
    noise: Tensor | None = None
    lead: Callable[[range], Lead] | None = None
    unconditional: Condition | None = None
    bias: Tensor | None = None
    look: Look | None = None
    to_score: Callable[[Image.Image], Image.Image] = lambda picture: picture
    finish: Callable[[Image.Image], Image.Image] = lambda picture: picture
    entry: Mapping[str, Any] = field(default_factory=lambda: SAMPLED)

    def around(self, known: Known, empty: Condition, shown: bool) -> "Drawing":
        """The drawing around known codes (B or 1, h, w), which the conditions have as their source if they are `shown`
        there. `empty` is the empty condition."""
        source: dict[str, Any] = {"source_codes": known.codes, "source_mask": known.fixed}
        source = source if shown else dict.fromkeys(source)
        rows = len(known.codes)
        pairs = [(replace(part, **source).expand(rows), weight) for part, weight in self.conditions]
        leads_from = replace(self.unconditional or empty, **source).expand(rows)
        return replace(self, conditions=pairs, unconditional=leads_from, known=known)
