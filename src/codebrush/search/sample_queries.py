"""Makes queries to measure a search by, from the embeddings of the database itself, and measures its recall by them.

Texts lie apart from pictures in CLIP's space. No CLIP is at hand here, so texts are made of the table's pictures: on
the other side of what all pictures have in common, with a cosine of 0.3 to a picture beside that, and otherwise spread
as pictures are. Of the built-in pack's true texts the nearest pictures lie in as many partitions (docs/log.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.search.vector_index import NEAREST

TEXT_COSINE, APART = 0.3, 0.7
SAME = 1e-5  # cosines that differ by less are equal: of pictures that are as near, either one is right


class Recall(NamedTuple):
    """The shares of the ten nearest pictures that searches by pictures and by texts find (recall@10)."""

    pictures: float
    texts: float


@dataclass(frozen=True)
class Asked:
    """Unit vectors (2 Q, E), first pictures, then texts, and the cosine of each with its tenth nearest picture."""

    queries: Tensor
    least: list[float]

    @classmethod
    def of(cls, queries: Tensor, parts: Iterable[Tensor]) -> "Asked":
        """The queries, compared with all embeddings of the database, which come as unit vectors (B, E) in parts."""
        best = torch.empty(len(queries), 0)
        for part in parts:
            best = torch.cat([best, queries @ part.T], dim=1)  # (2 Q, up to 10 + B)
            best = best.topk(min(NEAREST, best.shape[1])).values  # (2 Q, 10)
        return cls(queries, best[:, -1].tolist())

    def recall(self, find: Callable[[Tensor], Sequence[float]]) -> Recall:
        """The recalls of a search that gives the cosines of the pictures that it finds."""
        found = [
            sum(cosine >= least - SAME for cosine in find(query)) / NEAREST
            for query, least in zip(self.queries, self.least, strict=True)
        ]
        half = len(found) // 2
        return Recall(sum(found[:half]) / half, sum(found[half:]) / half)


def sample_queries(sample: Tensor, count: int, draw: np.random.Generator) -> Tensor:
    """Unit vectors (2 Q, E) from those of S pictures, (S, E), in a random order: the first Q = min(`count`, S) of them,
    then as many texts."""
    pictures, common = sample[:count], sample.mean(0)
    mix = torch.from_numpy(draw.normal(size=(len(pictures), len(sample)))).float()  # (Q, S)
    spread = F.normalize(mix @ (sample - common), dim=-1)  # (Q, E), distributed as pictures are
    texts = TEXT_COSINE * F.normalize(pictures - common, dim=-1) + (1 - TEXT_COSINE**2) ** 0.5 * spread
    return torch.cat([pictures, F.normalize(texts - APART * F.normalize(common, dim=0), dim=-1)])
