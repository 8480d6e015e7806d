"""A bank of known pictures: their CLIP embeddings, in which the nearest to a text are looked up."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.pretrained import PretrainedModel


@dataclass(frozen=True)
class BankConfig:
    """The names of a bank's pictures, one each, and the width of their embeddings (E)."""

    embed_dim: int
    names: tuple[str, ...]


class Neighbours(NamedTuple):
    """The k nearest pictures: their names, cosines (k,) and unit vectors (k, E), nearest first."""

    names: list[str]
    cosines: Tensor
    embeddings: Tensor


class Bank(PretrainedModel):
    """The embeddings (n, E) of known pictures, which `nearest` compares with a query."""

    config_class = BankConfig
    compact = r"embeddings"
    config: BankConfig

    def __init__(self, config: BankConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.Parameter(torch.zeros(len(config.names), config.embed_dim), requires_grad=False)

    @torch.no_grad()
    def nearest(self, query: Tensor, k: int) -> Neighbours:
        """The `k` pictures with the largest cosines with a unit vector (E,), or all if there are fewer."""
        known = F.normalize(self.embeddings.float(), dim=-1)
        cosines, rows = (known @ query).topk(min(k, len(known)))  # each (k,)
        return Neighbours([self.config.names[row] for row in rows.tolist()], cosines, known[rows])


def blended(found: Neighbours, sharpness: float = 50.0) -> Tensor:
    """One unit vector (E,) from several neighbours: their mean, weighted by softmax(sharpness * cosine)."""
    weights = (sharpness * found.cosines).softmax(0)
    return F.normalize(weights @ found.embeddings, dim=0)
