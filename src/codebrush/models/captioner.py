"""An image's patch features and a question in; the words of an answer out. A caption answers the empty question.

The patch features of CLIP's image tower stand in front and see each other; the words follow, each seeing the features
and the words before it (a prefix language model, as in Wang et al. 2022, "SimVLM", section 3.1). A row of tokens is
`start question end answer end`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.attention import KVCache, rotary_angles_2d
from codebrush.models.image_encoder import ModifiedResNet, VisionTransformer
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.transformer import Transformer, TransformerConfig, make_norm

MIN_CHANNELS = 32  # of the stem's convolutions


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes. `levels` names which of the image tower's features are read, the finest grid first; `patches` is how many
    vectors that makes and `feature_width` how wide they are. `stem` is the width of what the captioner's own
    convolutions see in each patch of the `image_size` pixels beside it (0: nothing), for what CLIP has no words for.
    `sights` is how many things training asks each patch about, and `places` how many columns and rows it asks a word
    that names something for (0: none). `context_length` counts question and answer together.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    patches: int
    feature_width: int
    levels: tuple[int, ...]
    image_size: int = 0
    stem: int = 0
    sights: int = 0
    places: int = 0
    pad_id: int = 0
    start_id: int = 1
    end_id: int = 2
    dropout: float = 0.0

    @property
    def halvings(self) -> int:
        """How often the stem halves a picture until a pixel is a patch."""
        return round(math.log2(self.image_size / math.isqrt(self.patches)))


def patch_features(encoder: VisionTransformer | ModifiedResNet, pixels: Tensor, levels: Sequence[int]) -> Tensor:
    """Normalised pixels (B, 3, H, W) -> features of each patch (B, P, F): those of several levels side by side.

    Coarser grids are laid over the finest, which is the first of `levels`; a class token is left out.
    """
    maps = encoder.features(pixels)
    chosen = [maps[level] for level in levels]
    if isinstance(encoder, VisionTransformer):
        first = int(encoder.class_embedding is not None)
        return torch.cat([tokens[:, first:] for tokens in chosen], dim=-1)
    grid = chosen[0].shape[-2:]
    spread = [F.interpolate(part.float(), grid, mode="nearest") for part in chosen]
    return torch.cat(spread, dim=1).flatten(2).transpose(1, 2)  # (B, hw, C)


class CaptionerOutput(NamedTuple):
    """Logits of words (..., K); where training asks for them, also of what each patch lies in (B, P, sights) and of the
    column and the row that is named (n, 2, places)."""

    logits: Tensor
    sights: Tensor | None = None
    places: Tensor | None = None


class Captioner(PretrainedModel):
    """A transformer that reads patches and writes words."""

    config_class = CaptionerConfig
    compact = r".*weight"
    config: CaptionerConfig

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.config = config
        trunk = TransformerConfig(
            config.width,
            config.layers,
            config.heads,
            activation="swiglu",
            norm="rms",
            bias=False,
            dropout=config.dropout,
        )
        self.stem = PixelStem(config) if config.stem else None
        self.feature_norm = nn.LayerNorm(config.feature_width)
        self.patch_projection = nn.Linear(config.feature_width + config.stem, config.width)
        self.patch_positions = nn.Parameter(_grid_positions(config.patches, config.width))
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)  # also the head
        self.token_positions = nn.Parameter(torch.randn(config.context_length, config.width) * 0.02)
        self.transformer = Transformer(trunk)
        self.sights = nn.Linear(config.width, config.sights) if config.sights else None
        self.places = nn.Linear(config.width, 2 * config.places) if config.places else None
        self.final_norm = make_norm(trunk)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_embedding.weight.device

    def see(self, features: Tensor, pixels: Tensor) -> Tensor:
        """CLIP's patch features (B, P, F) and the normalised pixels (B, 3, S, S) they are of -> with what the stem sees
        beside them, (B, P, F + stem)."""
        normed = self.feature_norm(features)
        return normed if self.stem is None else torch.cat([normed, self.stem(pixels).to(normed.dtype)], dim=-1)

    def prefix(self, seen: Tensor) -> Tensor:
        """What `see` gives (B, P, F + stem) -> the vectors in front of the words (B, P, D)."""
        # Of unit size: features that grew while they were learned drowned where they are.
        shown = F.rms_norm(self.patch_projection(seen), (self.config.width,))
        return shown + self.patch_positions

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        pixels: Tensor | None = None,
        wanted: Tensor | None = None,
        named: Tensor | None = None,
    ) -> CaptionerOutput:
        """What `see` gives (B, P, F + stem) and tokens (B, T) or (B, S, T) int64 -> logits of the token after each,
        (..., T, K); with `wanted`, a mask shaped like the tokens, of those alone, (n, K). With `pixels`, `features` are
        CLIP's and are seen here, and patches are asked what they lie in; without a word (T = 0) nothing else is done.
        With `named`, another such mask, the n words that it marks are asked half-way where what they name is, so that
        words after them can compare it.

        S rows of tokens about one image do not see each other: they cost the image once. With a `cache` that has seen
        the features, `features` are not read again and `tokens` (B, T) are the new ones alone.
        """
        rows = tokens if tokens.ndim == 3 else tokens.unsqueeze(1)  # (B, S, T)
        seen = max(0, cache.length - self.config.patches) if cache is not None else 0
        x = self.token_embedding(rows) + self.token_positions[seen : seen + rows.shape[2]]  # (B, S, T, D)
        x, mask, sights, places = x.flatten(1, 2), None, None, None
        if cache is None or not cache.length:
            prefix = self.prefix(features if pixels is None else self.see(features, pixels))  # (B, P, D)
            sights = None if pixels is None or self.sights is None else self.sights(prefix)
            if not tokens.shape[-1]:
                return CaptionerOutput(F.linear(x, self.token_embedding.weight), sights)
            x = torch.cat([prefix.to(x.dtype), x], dim=1)  # (B, P + S T, D)
            mask = segment_mask(self.config.patches, rows.shape[1], rows.shape[2], x.device)
        words = rows.shape[1] * rows.shape[2]
        if named is None or self.places is None:
            x = self.transformer(x, mask=mask, cache=cache)
        else:
            outputs = self.transformer.features(x, mask=mask)
            x, half_way = outputs[-1], outputs[(len(outputs) - 1) // 2]
            asked = half_way[:, -words:].unflatten(1, rows.shape[1:])[named.view(rows.shape)]
            places = self.places(asked).unflatten(1, (2, -1))
        x = self.final_norm(x[:, -words:]).view(*tokens.shape, -1)
        # A vocabulary's logits cost a fifth of training's time, and only some are asked for.
        logits = F.linear(x if wanted is None else x[wanted], self.token_embedding.weight)
        return CaptionerOutput(logits, sights, places)

    def make_cache(self) -> KVCache:
        """An empty cache with room for an image and a whole row of tokens."""
        cache = KVCache(self.config.layers)
        cache.reserve(self.config.patches + self.config.context_length)
        return cache


class PixelStem(nn.Module):
    """Convolutions that halve a picture until each pixel is a patch: (B, 3, S, S) -> (B, P, stem)."""

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        channels = MIN_CHANNELS
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.GELU()]
        for left in reversed(range(config.halvings)):
            out = max(MIN_CHANNELS, config.stem >> left) if left else config.stem
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), ResidualBlock(out)]
            channels = out
        self.layers = nn.Sequential(*layers, ResidualBlock(channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.layers(pixels).flatten(2).transpose(1, 2))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: (B, C, h, w) -> the same shape. Each pixel is normalised over its channels,
    as colours would be lost by normalising each channel over the picture."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.second(F.gelu(self.first(normed)))


def _grid_positions(patches: int, width: int) -> Tensor:
    """What the places of a grid start from, (P, D): sines and cosines of the row in one half, of the column in the
    other (Dosovitskiy et al. 2021, appendix D.4), about as large as the features beside them, so that places are
    told apart from the first step on."""
    side = math.ceil(math.sqrt(patches))
    places = torch.arange(patches)
    angles = rotary_angles_2d(places // side, places % side, width - width % 4, base=10.0)  # (P, D / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(waves, (0, width - waves.shape[1]))


def segment_mask(patches: int, segments: int, length: int, device: torch.device) -> Tensor:
    """(1, N, N) with N = patches + segments * length: patches see patches; a token sees them and what comes before it
    in its own segment."""
    part = torch.arange(segments, device=device).repeat_interleave(length)  # (S T,)
    place = torch.arange(length, device=device).repeat(segments)
    words = (part[:, None] == part[None]) & (place[:, None] >= place[None])
    mask = torch.zeros(patches + len(part), patches + len(part), dtype=torch.bool, device=device)
    mask[:, :patches] = True
    mask[patches:, patches:] = words
    return mask[None]
