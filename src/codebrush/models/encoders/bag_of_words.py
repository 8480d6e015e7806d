"""The smallest text encoder: a table of token vectors, averaged and projected."""

from dataclasses import dataclass

from torch import Tensor, nn

from codebrush.models.layers.pooling import masked_mean


@dataclass(frozen=True)
class BagOfWordsConfig:
    """Sizes of a bag of words. Padding and the tokens in `special_ids` (start, end, ...) are left out of the mean."""

    vocab_size: int
    context_length: int
    token_width: int
    embed_dim: int
    pad_id: int = 0
    special_ids: tuple[int, ...] = ()

    @property
    def feature_width(self) -> int:
        """D, the width of the encoder's `features`."""
        return self.token_width


class BagOfWords(nn.Module):
    """Continuous bag of words (Mikolov et al. 2013): the mean of the tokens' vectors, projected. Order is lost."""

    def __init__(self, config: BagOfWordsConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.token_width)
        self.projection = nn.Linear(config.token_width, config.embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> their vectors (B, T, token_width)."""
        return self.token_embedding(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, E), projected and not of unit length."""
        words = tokens != self.config.pad_id
        for special in self.config.special_ids:
            words = words & (tokens != special)
        return self.projection(masked_mean(self.token_embedding(tokens), words))
