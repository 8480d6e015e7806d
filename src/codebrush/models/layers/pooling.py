"""How encoders reduce a vector for each token or place to one: masked mean, and attention pooling of two kinds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.layers.transformer import MLP, TransformerConfig, make_norm


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `features` (B, T, D) over the tokens where `mask` (B, T) is True; zero where there is none."""
    weights = mask.to(features.dtype).unsqueeze(-1)  # (B, T, 1)
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1)


class QueryPool(nn.Module):
    """Attention pooling by one learned query, then a residual MLP: (B, N, D) -> (B, D).

    The MAP head of Zhai et al. 2022, appendix B.1, as in SigLIP.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(config.width) * 0.02)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        q = F.linear(self.query, self.qkv.weight[:width], self.qkv.bias[:width]).expand(len(x), 1, -1)  # (B, 1, D)
        k, v = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)  # each (B, N, D)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q.to(k.dtype), k, v))
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))  # (B, D)
        return y + self.mlp(self.norm(y))


class AttentionPool(nn.Module):
    """Attention pooling whose query is the mean of the grid: (B, C, h, w) -> (B, E).

    Radford et al. 2021, section 2.4. `side` is h and w.
    """

    def __init__(self, side: int, channels: int, heads: int, embed_dim: int):
        super().__init__()
        self.heads = heads
        self.position_embedding = nn.Parameter(torch.randn(side**2 + 1, channels) * channels**-0.5)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (B, hw, C)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.position_embedding  # (B, 1 + hw, C)
        parts = self.query(x[:, :1]), self.key(x), self.value(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, C / heads)
        return self.out(y.transpose(1, 2).flatten(1))
