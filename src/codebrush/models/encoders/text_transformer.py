"""CLIP's text transformer (Radford et al. 2021, section 2.4)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from codebrush.models.layers.pooling import masked_mean
from codebrush.models.layers.transformer import Activation, Transformer, TransformerConfig, blocks_of, make_norm


@dataclass(frozen=True)
class TextTransformerConfig:
    """Sizes of a text transformer. `token_width` 0 means that token vectors are as wide as the blocks.

    `pooling`: "argmax" reads the position of the largest token id (OpenAI's end of text), "end" that of the first
    `end_id`, "last" the last position; "mean" averages all that is not padding.

    The rest are choices that published models make differently. Without `mask_padding` an encoder that is not causal
    attends to padding as well (SigLIP). `hidden` is the MLP's inner width; 0 means four times the width.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    pad_id: int = 0
    end_id: int = 0
    causal: bool = True
    pooling: Literal["argmax", "end", "last", "mean"] = "argmax"
    activation: Activation = "gelu"
    token_width: int = 0
    dropout: float = 0.0
    hidden: int = 0
    norm_epsilon: float = 1e-5
    layer_scale: bool = False
    mask_padding: bool = True
    projection_bias: bool = False

    @property
    def trunk(self) -> TransformerConfig:
        """Sizes of the blocks."""
        return blocks_of(self)

    @property
    def feature_width(self) -> int:
        """D, the width of the encoder's `features`."""
        return self.width


class TextTransformer(nn.Module):
    """CLIP's text transformer (Radford et al. 2021, section 2.4), causal or bidirectional."""

    def __init__(self, config: TextTransformerConfig):
        super().__init__()
        self.config = config
        token_width = config.token_width or config.width
        self.token_embedding = nn.Embedding(config.vocab_size, token_width)
        self.token_projection = nn.Linear(token_width, config.width) if config.token_width else nn.Identity()
        self.position_embedding = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        self.transformer = Transformer(config.trunk)
        self.final_norm = make_norm(config.trunk)
        self.projection = nn.Linear(config.width, config.embed_dim, bias=config.projection_bias)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)

    def _end(self, tokens: Tensor) -> Tensor:
        """Position of the token that is pooled, (B,): for pooling by mean, the last that is not padding."""
        if self.config.pooling == "argmax":
            return tokens.argmax(1)
        if self.config.pooling == "end":
            return (tokens == self.config.end_id).int().argmax(1)
        if self.config.pooling == "last":
            return torch.full_like(tokens[:, 0], tokens.shape[1] - 1)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return ((tokens != self.config.pad_id) * positions).amax(1)

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, T, D), after the final norm; what is at padding means nothing."""
        x = self.token_projection(self.token_embedding(tokens))  # (B, T, D)
        x = x + self.position_embedding[: tokens.shape[1]]
        mask = None if self.config.causal or not self.config.mask_padding else tokens != self.config.pad_id
        return self.final_norm(self.transformer(x, causal=self.config.causal, mask=mask))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, E), projected and not of unit length."""
        end = self._end(tokens)
        if self.config.causal or self.config.mask_padding:
            tokens = tokens[:, : int(end.max()) + 1]  # tokens after the last end change no output
        x = self.features(tokens)
        if self.config.pooling == "mean":
            return self.projection(masked_mean(x, tokens != self.config.pad_id))
        return self.projection(x[torch.arange(len(x), device=x.device), end])
