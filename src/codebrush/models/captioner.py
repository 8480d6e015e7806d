"""The captioner writes text about a picture: the answer to a question, or a caption where the question is empty.

The patch features of CLIP's image encoder form a prefix whose vectors attend to each other; the tokens follow, each
attending to the prefix and the tokens before it (a prefix language model, as in SimVLM, Wang et al. 2022, section 3.1).
A row of tokens is `start question end answer end`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.encoders.image_encoder import ImageEncoderConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNet
from codebrush.models.encoders.vision_transformer import VisionTransformer
from codebrush.models.layers.attention import KVCache, rotary_angles_2d
from codebrush.models.layers.pixel_stem import PixelStem
from codebrush.models.layers.transformer import Transformer, TransformerConfig, make_norm
from codebrush.models.pretrained import PretrainedModel, stored_as


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes of a captioner and of what it reads.

    `levels` are the numbers of the image encoder's feature maps that are read, the finest grid first; they make
    `patches` vectors (P) of width `feature_width` (F). With a `stem` above 0 the captioner's own convolutions add that
    many numbers to each patch, from the pixels of pictures whose side is `image_size`.

    Two heads serve training on drawn scenes alone, and 0 leaves them out: `patch_labels` is the number L of labels
    predicted of each patch, `places` the number of columns, and of rows, among which the place of a named thing is
    predicted. `context_length` counts the tokens of question and answer together.
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
    patch_labels: int = field(default=0, metadata=stored_as("sights"))
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
    """Features of each patch, (B, P, F), of normalised pixels (B, 3, H, W): those of several levels side by side.

    `levels` are numbers of `encoder.features`, the finest grid first; coarser ones are spread over its cells. A class
    token is left out.
    """
    maps = encoder.features(pixels)
    chosen = [maps[level] for level in levels]
    if isinstance(encoder, VisionTransformer):
        first = int(encoder.class_embedding is not None)
        return torch.cat([tokens[:, first:] for tokens in chosen], dim=-1)  # (B, hw, F)
    grid = chosen[0].shape[-2:]
    spread = [F.interpolate(part.float(), grid, mode="nearest") for part in chosen]  # each (B, C, h, w)
    return torch.cat(spread, dim=1).flatten(2).transpose(1, 2)  # (B, hw, F)


def patch_feature_shape(config: ImageEncoderConfig, levels: Sequence[int]) -> tuple[int, int]:
    """P and F of the `patch_features` of an encoder of these sizes.

    Raises:
        IndexError: if the encoder has fewer levels.
    """
    chosen = [config.feature_shapes[level] for level in levels]
    return chosen[0][0], sum(width for _, width in chosen)


class CaptionerOutput(NamedTuple):
    """Logits of tokens, and the predictions that training on drawn scenes asks for."""

    logits: Tensor  # (..., K)
    patch_labels: Tensor | None = None  # (B, P, L): logits of the labels of each patch
    places: Tensor | None = None  # (n, 2, places): logits of the column and of the row of each of n named things


class Captioner(PretrainedModel):
    """A transformer that reads patches and writes text."""

    config_class = CaptionerConfig
    compact = r".*weight"
    stored_names: ClassVar = {"patch_labels": "sights"}
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
        self.stem = PixelStem(config.stem, config.halvings) if config.stem else None
        self.feature_norm = nn.LayerNorm(config.feature_width)
        self.patch_projection = nn.Linear(config.feature_width + config.stem, config.width)
        self.patch_positions = nn.Parameter(_grid_positions(config.patches, config.width))
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)  # also the output layer
        self.token_positions = nn.Parameter(torch.randn(config.context_length, config.width) * 0.02)
        self.transformer = Transformer(trunk)
        self.patch_labels = nn.Linear(config.width, config.patch_labels) if config.patch_labels else None
        self.places = nn.Linear(config.width, 2 * config.places) if config.places else None
        self.final_norm = make_norm(trunk)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.token_embedding.weight.device

    def with_stem(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Normalise CLIP's patch features (B, P, F) and add those of the stem, if there is one: (B, P, F + stem).

        `pixels` (B, 3, S, S) are the normalised pixels that the features are of.
        """
        normed = self.feature_norm(features)
        return normed if self.stem is None else torch.cat([normed, self.stem(pixels).to(normed.dtype)], dim=-1)

    def prefix(self, features: Tensor) -> Tensor:
        """What `with_stem` returns, (B, P, F + stem) -> the vectors in front of the tokens, (B, P, D)."""
        # Of unit size: features that grew in training drowned their positions.
        shown = F.rms_norm(self.patch_projection(features), (self.config.width,))
        return shown + self.patch_positions

    def forward(
        self,
        features: Tensor,
        tokens: Tensor | None,
        *,
        pixels: Tensor | None = None,
        wanted: Tensor | None = None,
        named: Tensor | None = None,
    ) -> CaptionerOutput:
        """Predict the token after each of `tokens`, and in training what the pictures show.

        Args:
            features: (B, P, F + stem), what `with_stem` returns; with `pixels`, CLIP's own (B, P, F).
            tokens: (B, T) or (B, S, T) int64. The S rows about one picture do not see each other, and share the cost of
                reading it. None: only the labels of the patches are predicted.
            pixels: (B, 3, S, S) normalised, for training: `with_stem` is applied here, and the labels of the patches
                are predicted.
            wanted: bool, shaped like `tokens`: logits are computed of these alone.
            named: bool, shaped like `tokens`, for training: the n words that name something, whose places are predicted
                from the middle layer, so that words after them can compare these.

        Returns:
            Logits (B, T, K) or (B, S, T, K), or (n, K) of n `wanted` tokens; and the predictions asked for.
        """
        prefix = self.prefix(features if pixels is None else self.with_stem(features, pixels))  # (B, P, D)
        labels = None if pixels is None or self.patch_labels is None else self.patch_labels(prefix)
        if tokens is None:
            return CaptionerOutput(prefix.new_empty(0, self.config.vocab_size), labels)
        x, mask, places = *self._joined(prefix, tokens), None  # (B, P + S T, D)
        if named is None or self.places is None:
            x = self.transformer(x, mask=mask)
        else:
            outputs = self.transformer.features(x, mask=mask)
            x, half_way = outputs[-1], outputs[(len(outputs) - 1) // 2]
            of_names = half_way[:, self.config.patches :].flatten(0, 1)[named.flatten()]  # (n, D)
            places = self.places(of_names).unflatten(1, (2, -1))  # (n, 2, places)
        x = self.final_norm(x[:, self.config.patches :]).view(*tokens.shape, -1)  # (B, T, D) or (B, S, T, D)
        # The logits of a vocabulary cost a fifth of training's time, and only some are used.
        logits = F.linear(x if wanted is None else x[wanted], self.token_embedding.weight)
        return CaptionerOutput(logits, labels, places)

    def prefill(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, KVCache]:
        """The logits (B, T, K) of `forward` for features (B, P, F + stem) and tokens (B, T), and a cache from which
        `step` goes on. It has room for a whole row of tokens."""
        cache = KVCache(self.config.layers)
        cache.reserve(self.config.patches + self.config.context_length)
        x, mask = self._joined(self.prefix(features), tokens)
        x = self.transformer(x, mask=mask, cache=cache)[:, self.config.patches :]
        return F.linear(self.final_norm(x), self.token_embedding.weight), cache

    def state(self, features: Tensor, tokens: Tensor) -> Tensor:
        """The vector (B, D) from which the token after tokens (B, T) is predicted; features are as in `prefill`."""
        x, mask = self._joined(self.prefix(features), tokens)
        return self.final_norm(self.transformer(x, mask=mask)[:, -1])

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, n, K) for the tokens (B, n) after those that `cache` has seen; it is updated in place."""
        x = self.transformer(self._embedded(tokens, cache.length - self.config.patches), cache=cache)
        return F.linear(self.final_norm(x), self.token_embedding.weight)

    def _joined(self, prefix: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix (B, P, D) with the embedded tokens (B, T) or (B, S, T) behind it, and the attention mask."""
        rows = tokens if tokens.ndim == 3 else tokens.unsqueeze(1)  # (B, S, T)
        x = self._embedded(rows).flatten(1, 2)  # (B, S T, D)
        mask = segment_mask(self.config.patches, rows.shape[1], rows.shape[2], x.device)
        return torch.cat([prefix.to(x.dtype), x], dim=1), mask

    def _embedded(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Tokens (..., T), which stand at `first` and after in their rows -> (..., T, D)."""
        return self.token_embedding(tokens) + self.token_positions[first : first + tokens.shape[-1]]


def _grid_positions(patches: int, width: int) -> Tensor:
    """Initial position vectors of a grid, (P, D): sines and cosines of the row in one half, of the column in the other.

    Dosovitskiy et al. 2021, appendix D.4. They are about as large as the features, so that places differ from the first
    step on.
    """
    side = math.ceil(math.sqrt(patches))
    places = torch.arange(patches)
    angles = rotary_angles_2d(places // side, places % side, width - width % 4, base=10.0)  # (P, D / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (P, D), less up to 3 columns
    return F.pad(waves, (0, width - waves.shape[1]))


def segment_mask(patches: int, segments: int, length: int, device: torch.device) -> Tensor:
    """Attention mask (1, N, N) of P patches and S segments of T tokens, N = P + S T, True where row may see column.

    Patches see patches; a token sees all patches, itself and the tokens before it in its own segment.
    """
    part = torch.arange(segments, device=device).repeat_interleave(length)  # (S T,)
    place = torch.arange(length, device=device).repeat(segments)
    words = (part[:, None] == part[None]) & (place[:, None] >= place[None])  # (S T, S T)
    mask = torch.zeros(patches + len(part), patches + len(part), dtype=torch.bool, device=device)
    mask[:, :patches] = True
    mask[patches:, patches:] = words
    return mask[None]
