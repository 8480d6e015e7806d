"""The prior: a small network from the embedding of a text to that of a picture which fits it.

In CLIP's space texts lie apart from pictures even where they fit, so a network that draws from picture embeddings
should not be given a text's (unCLIP, Ramesh et al. 2022, section 2.2).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.layers.transformer import MLP, TransformerConfig
from codebrush.models.pretrained import PretrainedModel


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
