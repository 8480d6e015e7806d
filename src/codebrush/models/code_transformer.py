"""Conditions and codes -> logits of each code and of the next: the second stage of Taming and of DALL-E 1.

A prefix of vectors carries what is asked for: the text's token features, a pooled text or image embedding of
CLIP, the codes of a source picture. Each may be left out; a learned vector then stands in its place, which is
also what classifier-free guidance compares with (Ho and Salimans 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from codebrush.models.attention import KVCache, rotary_angles_2d
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.transformer import Activation, Norm, Transformer, TransformerConfig, make_norm


@dataclass(frozen=True)
class CodeTransformerConfig:
    """Sizes. A condition of width 0 does not exist in this network.

    `text_features`, `text_embedding`, `image_embedding`: the width of each condition's vectors; `text_length`:
    how many text tokens the prefix holds; `source_codes`: whether a source picture's codes may stand there.
    `condition_dropout`: the chance in training that all conditions go, and then of each one by itself.
    """

    codebook_size: int
    grid: tuple[int, int]
    width: int
    layers: int
    heads: int
    text_features: int = 0
    text_length: int = 0
    text_embedding: int = 0
    image_embedding: int = 0
    source_codes: bool = False
    condition_dropout: float = 0.1
    dropout: float = 0.0
    activation: Activation = "swiglu"
    norm: Norm = "rms"
    learned_positions: bool = True

    @property
    def code_count(self) -> int:
        """N, the number of codes of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix_length(self) -> int:
        """Vectors in front of the codes; the last one is the start token."""
        text = self.text_length if self.text_features else 0
        source = self.code_count if self.source_codes else 0
        return text + bool(self.text_embedding) + bool(self.image_embedding) + source + 1


@dataclass  # not frozen: Lightning's precision plugins rebuild a forward's arguments field by field
class Condition:
    """What a picture is drawn from; None stands for "not given"."""

    text_features: Tensor | None = None  # (B, T, D)
    text_mask: Tensor | None = None  # (B, T) bool, True at text
    text_embedding: Tensor | None = None  # (B, E)
    image_embedding: Tensor | None = None  # (B, E)
    source_codes: Tensor | None = None  # (B, h, w) or (B, N) int64

    def _map(self, change) -> "Condition":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{name: None if value is None else change(value) for name, value in values.items()})

    def rows(self, index: Tensor | slice) -> "Condition":
        """The batch rows that `index` picks."""
        return self._map(lambda value: value[index])

    def repeat(self, times: int) -> "Condition":
        """Every row `times` times, copies of a row side by side."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    def to(self, device: torch.device) -> "Condition":
        """The same on another device."""
        return self._map(lambda value: value.to(device))


class CodeTransformer(PretrainedModel):
    """A decoder-only transformer over a condition prefix and a grid of codes in raster order."""

    config_class = CodeTransformerConfig
    angles: Tensor  # (prefix_length + N, head width / 2)

    def __init__(self, config: CodeTransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        trunk = TransformerConfig(
            width,
            config.layers,
            config.heads,
            activation=config.activation,
            norm=config.norm,
            bias=config.norm == "layer",
            dropout=config.dropout,
        )
        self.code_embedding = nn.Embedding(config.codebook_size, width)
        self.start = nn.Parameter(torch.randn(1, width) * 0.02)
        self.positions = (
            nn.Parameter(torch.randn(config.code_count, width) * 0.02) if config.learned_positions else None
        )
        self.projections = nn.ModuleDict()
        self.nulls = nn.ParameterDict()
        for name, length in self._slots():
            self.nulls[name] = nn.Parameter(torch.randn(length, width) * 0.02)
            if name != "source_codes":
                self.projections[name] = nn.Sequential(nn.Linear(getattr(config, name), width), nn.LayerNorm(width))
        self.prefix_positions = nn.Parameter(torch.randn(config.prefix_length, width) * 0.02)
        self.transformer = Transformer(trunk)
        self.final_norm = make_norm(trunk)
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        nn.init.normal_(self.code_embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in config.grid), indexing="ij")
        codes = rotary_angles_2d(rows.flatten() + 1, columns.flatten() + 1, width // config.heads)
        unturned = torch.zeros(config.prefix_length, codes.shape[1])  # the prefix sits at the grid's origin
        self.register_buffer("angles", torch.cat([unturned, codes]), persistent=False)

    def _slots(self) -> list[tuple[str, int]]:
        """Name and length of each condition that this network has, in the order of the prefix."""
        c = self.config
        lengths = {"text_features": c.text_length, "source_codes": c.code_count}
        names = ("text_features", "text_embedding", "image_embedding", "source_codes")
        return [(name, lengths.get(name, 1)) for name in names if getattr(c, name)]

    def _given(self, name: str, condition: Condition, batch: int) -> tuple[Tensor, Tensor] | None:
        """One condition's vectors (B, L, D) and where they are given (B, L) bool; None when it is absent."""
        value: Tensor | None = getattr(condition, name)
        if value is None:
            return None
        if name == "source_codes":
            vectors = self.code_embedding(value.flatten(1))  # (B, N, D)
            return vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=value.device)
        if name != "text_features":
            return self.projections[name](value).unsqueeze(1), torch.ones(
                batch, 1, dtype=torch.bool, device=value.device
            )
        length = self.config.text_length
        mask = condition.text_mask
        if mask is None:
            mask = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        value, mask = value[:, :length], mask[:, :length]
        missing = length - value.shape[1]
        value = torch.nn.functional.pad(value, (0, 0, 0, missing))
        return self.projections[name](value), torch.nn.functional.pad(mask, (0, missing))

    def prefix(self, condition: Condition, batch: int) -> Tensor:
        """The condition as vectors (B, prefix_length, D); in training some conditions are dropped at random."""
        device, rate = self.start.device, self.config.condition_dropout if self.training else 0.0
        keep_any = torch.rand(batch, 1, device=device) >= rate
        parts = []
        for name, _ in self._slots():
            null = self.nulls[name].expand(batch, -1, -1)  # (B, L, D)
            given = self._given(name, condition, batch)
            keep = keep_any & (torch.rand(batch, 1, device=device) >= rate)
            if given is None:
                parts.append(null)
                continue
            vectors, present = given
            parts.append(torch.where((present & keep).unsqueeze(-1), vectors, null.to(vectors.dtype)))
        parts.append(self.start.expand(batch, 1, -1))
        return torch.cat(parts, dim=1) + self.prefix_positions

    def forward(self, codes: Tensor, condition: Condition | None = None, cache: KVCache | None = None) -> Tensor:
        """Codes (B, n) int64, n from 0 to N -> logits (B, n + 1, K): what each code, and the next, should be.

        With a `cache` that has seen the prefix, `codes` are the new ones alone and the logits (B, n, K) are
        those of the codes after each of them.
        """
        batch = codes.shape[0]
        x = self.code_embedding(codes)  # (B, n, D)
        seen = cache.length if cache is not None else 0
        prefix = self.config.prefix_length
        if self.positions is not None:
            first = max(seen - prefix, 0)
            x = x + self.positions[first : first + codes.shape[1]]
        if not seen:
            x = torch.cat([self.prefix(condition or Condition(), batch).to(x.dtype), x], dim=1)
        angles = self.angles[seen : seen + x.shape[1]]
        x = self.transformer(x, causal=True, angles=angles, cache=cache)
        if not seen:
            x = x[:, prefix - 1 :]  # the start token predicts the first code
        return self.head(self.final_norm(x))

    def make_cache(self) -> KVCache:
        """An empty cache with room for one whole picture."""
        cache = KVCache(self.config.layers)
        cache.reserve(self.config.prefix_length + self.config.code_count)
        return cache


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """Batches of the same kind of condition, one after another in one batch."""
    values = {}
    for field in fields(Condition):
        parts = [getattr(condition, field.name) for condition in conditions]
        values[field.name] = None if any(part is None for part in parts) else torch.cat(parts)
    return Condition(**values)
