"""From the embedding of a text to that of a picture which fits it: a small network, and a bank of known pictures.

In CLIP's space texts lie apart from pictures even where they fit, so a network that draws from picture embeddings
should not be given a text's (unCLIP, Ramesh et al. 2022, section 2.2).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.pretrained import PretrainedModel
from codebrush.models.transformer import MLP, TransformerConfig


@dataclass(frozen=True)
class PriorConfig:
    """Sizes: `embed_dim` is the width of CLIP's space (E), `width` the inner width of each of the `layers` MLPs."""

    embed_dim: int
    width: int
    layers: int = 2


class Prior(PretrainedModel):
    """Residual MLPs from the unit vector of a text to the unit vector of a picture."""

    config_class = PriorConfig
    compact = r".*weight"
    config: PriorConfig

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        trunk = TransformerConfig(config.embed_dim, config.layers, 1, hidden=config.width)
        self.norms = nn.ModuleList(nn.LayerNorm(config.embed_dim) for _ in range(config.layers))
        self.layers = nn.ModuleList(MLP(trunk) for _ in range(config.layers))
        self.head = nn.Linear(config.embed_dim, config.embed_dim)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, texts: Tensor) -> Tensor:
        """Unit vectors of texts (B, E) -> unit vectors of pictures (B, E)."""
        x = texts
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return F.normalize(self.head(x), dim=-1)


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
