"""Says whether a picture shows what a text says: whether the text fits it better than texts about other things do.

How high a cosine must be for that differs from CLIP to CLIP, so a single threshold on it would say nothing.
docs/log.md has the figures of the built-in pack.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from codebrush.text.other_things import NEAR, UNSURE


@dataclass(frozen=True)
class Presence:
    """`level`, 0 to 1, is the share of the texts about other things that fit the picture less than the text does;
    `shown` says whether that is at least `NEAR`."""

    level: float

    @property
    def shown(self) -> bool:
        """Whether the picture shows what the text says."""
        return self.level >= NEAR

    def doubt(self, text: str) -> str | None:
        """What there is to say about `text` to somebody who takes it for what the picture shows; None if it is."""
        if self.shown:
            return None
        opening = "perhaps the picture does not show" if self.level >= UNSURE else "the picture hardly shows"
        return f'{opening} "{text}": {1 - self.level:.0%} of texts about other things fit it as well or better'


@torch.no_grad()
def presences(picture: Tensor, texts: Tensor, others: Tensor) -> list[Presence]:
    """How far a picture (E,) shows what each of the texts (T, E) says, by texts about other things (N, E); all are unit
    vectors."""
    levels = (others @ picture < (texts @ picture)[:, None]).float().mean(1)  # (T,)
    return [Presence(level) for level in levels.tolist()]
