"""The code transformer draws: it predicts a picture's codes one after the other (second stage of Taming and DALL-E 1).

A prefix of vectors carries the condition: the text's token features, a pooled text or image embedding of CLIP, the
codes of a source picture, a class label. Each may be left out; a learned vector then takes its place, which is also
what classifier-free guidance compares with (Ho and Salimans 2022). A source takes as many vectors as the picture
itself, so these are left out of the prefix where no row of the batch has a source.

With blocks, the long transformer takes one step for a square of codes and a short one, the `BlockWriter`, writes the
codes of the square one after the other (RQ-Transformer, Lee et al. 2022, section 3.2): a picture of 16 x 16 codes then
costs about twice one of 8 x 8, where code after code it costs more than four times as much.

A masked network has the same parts, but sees what is known of a picture on all sides and predicts the rest at once.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.block_writer import BlockWriter
from codebrush.models.code_cache import CodeCache
from codebrush.models.code_positions import drawing_order, prefix_and_grid_factors
from codebrush.models.code_transformer_config import CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.layers.attention import KVCache
from codebrush.models.layers.transformer import Transformer, TransformerConfig, make_norm
from codebrush.models.pretrained import PretrainedModel


class _Prefix(NamedTuple):
    """A condition as the transformer reads it."""

    vectors: Tensor  # (B, P, D)
    indices: Tensor  # (P,) int64: which vectors of the longest prefix they are
    mask: Tensor | None  # (B, P) bool: which may be attended to; None: all
    source: Tensor | None  # (B, N / M, D): what an aligned source adds where each block is predicted
    vector: Tensor | None  # (B, D): what modulates the blocks


UNKNOWN = -1  # what a masked network reads in place of a code that is to be predicted


class CodeTransformer(PretrainedModel):
    """A decoder-only transformer over a condition prefix and a grid of N codes, block after block in raster order.

    With `masked` in its config it attends to all codes, of which those that are not known are UNKNOWN.

    `order` (N,) int64 gives, for each step of drawing, the place of its code in the grid, counted in raster order. The
    `codes` of all methods are in the order of drawing.

    Raises:
        PackError: if the grid of the config has no whole blocks, or it has no pooled embedding for its modulation.
    """

    config_class = CodeTransformerConfig
    config: CodeTransformerConfig
    order: Tensor
    rotary: Tensor | None  # (2, prefix_length + N / M, head width / 2): cosines and sines of the rotary angles

    def __init__(self, config: CodeTransformerConfig):
        super().__init__()
        if any(side % config.block for side in config.grid):
            raise PackError(
                f"a grid of {config.grid[0]} x {config.grid[1]} codes has no whole squares of {config.block}"
            )
        self.pooled = [name for name, _ in config.conditions if name in ("text_embedding", "image_embedding")]
        if config.modulation and not self.pooled:
            raise PackError(
                "a pooled embedding modulates the blocks: the network must read that of a text or a picture"
            )
        self.config = config
        width = config.width
        trunk = TransformerConfig(
            width,
            config.layers,
            config.heads,
            hidden=config.hidden,
            activation=config.activation,
            norm=config.norm,
            bias=config.norm == "layer",
            dropout=config.dropout,
            modulation=width if config.modulation else 0,
        )
        self.code_embedding = nn.Embedding(config.codebook_size, width)
        self.unknown = nn.Parameter(torch.randn(width) * 0.02) if config.masked else None
        self.start = nn.Parameter(torch.randn(1, width) * 0.02) if config.start_token else None
        count = config.code_count // config.block_size
        self.positions = nn.Parameter(torch.randn(count, width) * 0.02) if config.learned_positions else None
        self.projections = nn.ModuleDict()
        self.nulls = nn.ParameterDict()
        for name, length in config.conditions:
            self.nulls[name] = nn.Parameter(torch.randn(length, width) * 0.02)
            if name != "source_codes":
                self.projections[name] = _projection(config, name)
        self.align = nn.Linear(width, width, bias=False) if config.aligned_source and config.source_codes else None
        if self.align is not None:
            nn.init.zeros_(self.align.weight)  # so that a network that is given this later still draws as before
        self.prefix_positions = nn.Parameter(torch.randn(config.prefix_length, width) * 0.02)
        self.transformer = Transformer(trunk)
        short = replace(trunk, layers=config.block_layers, modulation=0)
        self.writer = BlockWriter(config.block_size, short) if config.block > 1 else None
        self.final_norm = make_norm(trunk)
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        nn.init.normal_(self.code_embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        rotary = None
        if config.rotary != "none":
            parts = [*config.conditions, ("start", int(config.start_token))]
            rotary = prefix_and_grid_factors(parts, config.blocks, width // config.heads, config.rotary == "silent")
        self.register_buffer("rotary", rotary, persistent=False)
        self.register_buffer("order", drawing_order(config.grid, config.block), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.code_embedding.weight.device

    def prefix_indices(self, condition: Condition) -> Tensor:
        """Which vectors of the longest prefix a condition has, (P,) int64: those of a source only if it has one."""
        config, whole = self.config, torch.arange(self.config.prefix_length, device=self.device)
        if condition.source_codes is not None or not (config.source_codes and config.start_token):
            return whole  # without a start token the last vector must stay, as it predicts the first code
        names = [name for name, _ in config.conditions]
        first = sum(length for _, length in config.conditions[: names.index("source_codes")])
        return torch.cat([whole[:first], whole[first + dict(config.conditions)["source_codes"] :]])

    def prefix(self, condition: Condition, batch: int) -> Tensor:
        """The condition as vectors (B, P, D), for `batch` rows; in training some conditions are dropped at random."""
        return self._prefix(condition, batch).vectors

    def forward(self, codes: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict each of the first n codes and the next one, from the codes before it; a masked network predicts all
        codes from those that are known.

        Args:
            codes: (B, n) int64, n from 0 to N, in the order of drawing; of a masked network N, with UNKNOWN ones.
            condition: of B rows or of one; None means no condition.

        Returns:
            Logits (B, n + 1, K); of a masked network (B, N, K).
        """
        hidden, _ = self._start(codes, condition, None)
        if not self.config.masked:
            return self._logits(hidden, codes, 0)
        x = hidden if self.writer is None else self.writer(hidden, self._vectors(codes), causal=False)
        return self.head(self.final_norm(x))

    def prefill(self, codes: Tensor, condition: Condition | None = None) -> tuple[Tensor, CodeCache]:
        """What `forward` returns, and a cache from which `step` goes on."""
        attention = KVCache(self.config.layers)
        attention.reserve(self.config.prefix_length + self.config.code_count // self.config.block_size)
        hidden, prefix = self._start(codes, condition, attention)
        mask = None if prefix.mask is None else _padded(prefix.mask, attention.length, value=True)
        open_codes = codes[:, self._whole(codes) :]
        cache = CodeCache(
            attention, len(prefix.indices), mask, prefix.source, prefix.vector, hidden[:, -1:], open_codes
        )
        return self._logits(hidden, codes, 0), cache

    def step(self, codes: Tensor, cache: CodeCache) -> Tensor:
        """Predict the codes that follow each of n new ones.

        Args:
            codes: (B, n) int64, n at least 1: the codes after those that `cache` has seen.
            cache: what `prefill` and the steps before left; it is updated in place.

        Returns:
            Logits (B, n, K).
        """
        known = torch.cat([cache.open, codes], dim=1)  # from the open block on
        whole = self._whole(known)
        hidden = torch.cat([cache.hidden, self._next_blocks(known[:, :whole], cache)], dim=1)
        first = cache.open.shape[1] + 1
        cache.hidden, cache.open = hidden[:, -1:], known[:, whole:]
        return self._logits(hidden, known, first)

    def _whole(self, codes: Tensor) -> int:
        """How many of `codes` (B, n) belong to whole blocks."""
        return codes.shape[1] // self.config.block_size * self.config.block_size

    def _logits(self, hidden: Tensor, codes: Tensor, first: int) -> Tensor:
        """Predictions of codes from number `first` on.

        Args:
            hidden: (B, b, D): what predicts each of b blocks.
            codes: (B, n): those known from the first of these blocks on.
            first: the first code to predict, counted from there; the last is the one after `codes`.

        Returns:
            Logits (B, n + 1 - first, K).
        """
        skipped = first // self.config.block_size  # blocks that need not be predicted again
        hidden, codes = hidden[:, skipped:], codes[:, skipped * self.config.block_size :]
        first -= skipped * self.config.block_size
        x = hidden if self.writer is None else self.writer(hidden, self.code_embedding(codes))
        return self.head(self.final_norm(x[:, first : codes.shape[1] + 1]))

    def _start(self, codes: Tensor, condition: Condition | None, attention: KVCache | None) -> tuple[Tensor, _Prefix]:
        """Read a condition and the whole blocks of codes (B, n) -> what predicts each block and the next one,
        (B, n // M + 1, D); of a masked network each block, (B, N / M, D). With `attention` their keys and values are
        kept there."""
        blocks, rotary = self._placed(codes[:, : self._whole(codes)], 0)
        prefix = self._prefix(condition or Condition(), len(codes))
        length, mask = prefix.vectors.shape[1], prefix.mask
        x = torch.cat([prefix.vectors.to(blocks.dtype), blocks], dim=1)  # (B, P + n // M, D)
        if mask is not None:
            mask = _padded(mask, x.shape[1], value=True)
        if self.rotary is not None and rotary is not None:
            rotary = torch.cat([self.rotary[:, prefix.indices], rotary], dim=1)
        ahead = int(not self.config.masked)  # the last vector of the prefix predicts the first block
        if prefix.source is not None:
            added = prefix.source[:, : blocks.shape[1] + ahead]
            x = x + _padded(_padded(added, blocks.shape[1] + ahead), x.shape[1], left=True)
        x = self.transformer(x, causal=bool(ahead), mask=mask, rotary=rotary, cache=attention, vector=prefix.vector)
        return x[:, length - ahead :], prefix

    def _next_blocks(self, codes: Tensor, cache: CodeCache) -> Tensor:
        """Read new whole blocks of codes (B, n) -> what predicts the block after each, (B, n / M, D)."""
        first = cache.attention.length - cache.prefix  # the number of the first of these blocks
        x, rotary = self._placed(codes, first)
        if not x.shape[1]:
            return x
        if cache.mask is not None:
            cache.mask = _padded(cache.mask, cache.mask.shape[1] + x.shape[1], value=True)
        if cache.source is not None:
            x = x + _padded(cache.source[:, first + 1 : first + 1 + x.shape[1]], x.shape[1])
        return self.transformer(
            x,
            causal=True,
            mask=cache.mask,
            rotary=rotary,
            cache=cache.attention,
            vector=cache.vector,
            modulated=cache.modulated,
        )

    def _placed(self, codes: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        """Codes of whole blocks (B, n), of which the first is block number `first` -> the blocks' vectors with their
        positions (B, n / M, D), and their rotary factors (2, n / M, head width / 2)."""
        x = self._read(codes)
        last = first + x.shape[1]
        if self.positions is not None:
            x = x + self.positions[first:last]
        return x, None if self.rotary is None else self.rotary[:, self.config.prefix_length :][:, first:last]

    def _read(self, codes: Tensor) -> Tensor:
        """Codes of whole blocks (B, n) -> the blocks' vectors (B, n / M, D)."""
        vectors = self._vectors(codes)
        return vectors if self.writer is None else self.writer.join(vectors)

    def _vectors(self, codes: Tensor) -> Tensor:
        """Codes (B, n) -> their vectors (B, n, D), UNKNOWN ones in a masked network included."""
        if self.unknown is None:
            return self.code_embedding(codes)
        vectors = self.code_embedding(codes.clamp(min=0))
        return torch.where((codes == UNKNOWN).unsqueeze(-1), self.unknown.to(vectors.dtype), vectors)

    def _prefix(self, condition: Condition, batch: int) -> _Prefix:
        device, rate = self.device, self.config.condition_dropout if self.training else 0.0
        keep_any = torch.rand(batch, 1, device=device) >= rate
        parts: dict[str, Tensor] = {}
        indices, source = self.prefix_indices(condition), None
        for number, (name, _) in enumerate(self.config.conditions):
            if name == "source_codes" and len(indices) < self.config.prefix_length:
                continue
            null = self.nulls[name].expand(batch, -1, -1)  # (B, L, D)
            given = self._given(name, condition, batch)
            keep = keep_any & (torch.rand(batch, 1, device=device) >= rate)
            if given is None:
                parts[name] = null
                continue
            vectors, present = given
            if condition.present is not None:
                keep = keep & condition.present[:, number : number + 1]
            parts[name] = torch.where((present & keep).unsqueeze(-1), vectors, null.to(vectors.dtype))
            if name == "source_codes" and self.align is not None:
                source = self.align(parts[name])
        pooled = [parts[name][:, 0] for name in self.pooled]  # each (B, D)
        vector = torch.stack(pooled).sum(0) if self.config.modulation else None
        if self.start is not None:
            parts["start"] = self.start.expand(batch, 1, -1)
        vectors = torch.cat([*parts.values()], dim=1) + self.prefix_positions[indices]  # (B, P, D)
        return _Prefix(vectors, indices, self._mask(condition, len(indices)), source, vector)

    def _given(self, name: str, condition: Condition, batch: int) -> tuple[Tensor, Tensor] | None:
        """One condition's vectors (B, L, D), and where they are given (B, L) bool; None if it is absent."""
        value: Tensor | None = getattr(condition, name)
        if value is None:
            return None
        if name == "source_codes":
            vectors = self._read(value.flatten(1)[:, self.order])  # (B, N / M, D)
            if condition.source_mask is not None:
                shown = condition.source_mask.flatten(1)[:, self.order]  # (B, N)
                return vectors, shown.unflatten(1, (-1, self.config.block_size)).any(-1)
        elif name == "text_features":
            room, left = self.config.text_length, self.config.hide_padding
            vectors = self.projections[name](_padded(value[:, :room], room, left=left))  # (B, text_length, D)
            if condition.text_mask is not None and not self.config.hide_padding:
                return vectors, _padded(condition.text_mask[:, :room], room)
            present = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
            return vectors, _padded(present[:, :room], room, left=left)
        else:
            vectors = self.projections[name](value).unsqueeze(1)  # (B, 1, D)
        return vectors, torch.ones(batch, vectors.shape[1], dtype=torch.bool, device=value.device)

    def _mask(self, condition: Condition, length: int) -> Tensor | None:
        """Which vectors of a prefix of `length` may be attended to, (B, length) bool; None: all."""
        mask, config = condition.text_mask, self.config
        if mask is None or not (config.hide_padding and config.text_features):
            return None
        mask = _padded(mask.bool(), config.text_length, left=True)  # the text is the first condition
        return _padded(mask, length, value=True)


def _projection(config: CodeTransformerConfig, name: str) -> nn.Module:
    """The module that maps a condition's vectors, or a label, to the trunk's width."""
    source, width = getattr(config, name), config.width
    if name == "labels":
        return nn.Embedding(source, width)
    if name == "text_features" and config.text_projection == "mlp":
        layers = nn.Linear(source, width, bias=False), nn.Linear(width, width, bias=False)
        return nn.Sequential(layers[0], nn.GELU(approximate="tanh"), layers[1])
    return nn.Sequential(nn.Linear(source, width), nn.LayerNorm(width))


def _padded(x: Tensor, length: int, left: bool = False, value: float = 0) -> Tensor:
    """`x` (B, n, ...) filled up with `value` to (B, length, ...), behind it or on its `left`."""
    missing = length - x.shape[1]
    sides = (missing, 0) if left else (0, missing)
    return F.pad(x, (0, 0) * (x.ndim - 2) + sides, value=value)
