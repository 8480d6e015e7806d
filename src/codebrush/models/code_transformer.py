"""Conditions and codes -> logits of each code and of the next: the second stage of Taming and of DALL-E 1.

A prefix of vectors carries what is asked for: the text's token features, a pooled text or image embedding of
CLIP, the codes of a source picture. Each may be left out; a learned vector then stands in its place, which is
also what classifier-free guidance compares with (Ho and Salimans 2022). A source is as long as the picture itself, so
where no row has one the prefix is without it.

With blocks, the long transformer takes one step for a square of codes and a short one writes the codes of the square
one after the other, each from those before it (RQ-Transformer, Lee et al. 2022, section 3.2, with the codes of a square
for its depth): a picture of 16 x 16 codes costs about twice one of 8 x 8, not four times and more.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.attention import KVCache, rotary_angles_2d, rotations
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.transformer import Activation, Norm, Transformer, TransformerConfig, make_norm


@dataclass(frozen=True)
class CodeTransformerConfig:
    """Sizes. A condition of width 0 does not exist in this network.

    `text_features`, `text_embedding`, `image_embedding`: the width of each condition's vectors; `text_length`:
    how many text tokens the prefix holds; `source_codes`: whether a source picture's codes may stand there, and with
    `aligned_source` each is also added where the code of its place is predicted, so that nothing has to be found;
    `labels`: the number of classes, one of which may stand there. `condition_dropout`: the chance in training that
    all conditions go, and then of each one by itself. `block` is the side of the square of codes that is one step of
    the long transformer, and `block_layers` are those of the short one that writes within it; 1 is code after code.

    The rest is what published models do otherwise. `text_projection` "mlp" has a hidden layer and no norm (LlamaGen).
    `hide_padding` keeps padding of the text from being attended to, where otherwise a learned vector takes its place.
    Without a `start_token` the condition's last vector predicts the first code. `rotary` "silent" counts the grid
    from 0 and turns queries and keys of the prefix to zero (LlamaGen), "none" turns nothing (Taming). `hidden` is the
    MLP's inner width; 0 means the usual one.
    """

    codebook_size: int
    grid: tuple[int, int]
    width: int
    layers: int
    heads: int
    block: int = 1
    block_layers: int = 1
    text_features: int = 0
    text_length: int = 0
    text_embedding: int = 0
    image_embedding: int = 0
    source_codes: bool = False
    aligned_source: bool = False
    labels: int = 0
    condition_dropout: float = 0.1
    dropout: float = 0.0
    activation: Activation = "swiglu"
    norm: Norm = "rms"
    hidden: int = 0
    learned_positions: bool = True
    rotary: Literal["grid", "silent", "none"] = "grid"
    text_projection: Literal["norm", "mlp"] = "norm"
    hide_padding: bool = False
    start_token: bool = True

    @property
    def code_count(self) -> int:
        """N, the number of codes of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def block_size(self) -> int:
        """M, the number of codes of one block."""
        return self.block**2

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks; there are N / M of them."""
        return self.grid[0] // self.block, self.grid[1] // self.block

    @property
    def prefix_length(self) -> int:
        """Vectors in front of the codes, with a source; the last one is the start token where there is one."""
        return sum(length for _, length in self.conditions) + self.start_token

    @property
    def conditions(self) -> list[tuple[str, int]]:
        """Name and length of each condition that this network has, in the order of the prefix."""
        lengths = {"text_features": self.text_length, "source_codes": self.code_count // self.block_size}
        names = ("text_features", "text_embedding", "image_embedding", "source_codes", "labels")
        return [(name, lengths.get(name, 1)) for name in names if getattr(self, name)]


@dataclass  # not frozen: Lightning's precision plugins rebuild a forward's arguments field by field
class Condition:
    """What a picture is drawn from; None stands for "not given"."""

    text_features: Tensor | None = None  # (B, T, D)
    text_mask: Tensor | None = None  # (B, T) bool, True at text
    text_embedding: Tensor | None = None  # (B, E)
    image_embedding: Tensor | None = None  # (B, E)
    source_codes: Tensor | None = None  # (B, h, w) or (B, N) int64
    source_mask: Tensor | None = None  # of the same shape, bool: False at holes; None: no holes
    labels: Tensor | None = None  # (B,) int64
    # (B, C) bool: which of the network's conditions, in its config's order, a row has; None: all that are given
    present: Tensor | None = None

    def _map(self, change) -> "Condition":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{name: None if value is None else change(value) for name, value in values.items()})

    def rows(self, index: Tensor | slice) -> "Condition":
        """The batch rows that `index` picks."""
        return self._map(lambda value: value[index])

    def repeat(self, times: int) -> "Condition":
        """Every row `times` times, copies of a row side by side."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    def expand(self, batch: int) -> "Condition":
        """One row as `batch` of them; as many are left as they are."""
        return self._map(lambda value: value if len(value) == batch else value.expand(batch, *value.shape[1:]))

    def to(self, device: torch.device) -> "Condition":
        """The same on another device."""
        return self._map(lambda value: value.to(device))


class CodeTransformer(PretrainedModel):
    """A decoder-only transformer over a condition prefix and a grid of codes, block after block in raster order.

    `order` (N,) int64 holds the place in the grid, counted in raster order, of each code in the order of writing.
    """

    config_class = CodeTransformerConfig
    order: Tensor
    turns: Tensor | None  # (2, prefix_length + N / M, head width / 2): cosines and sines of the rotary angles

    def __init__(self, config: CodeTransformerConfig):
        super().__init__()
        if any(side % config.block for side in config.grid):
            raise PackError(
                f"a grid of {config.grid[0]} x {config.grid[1]} codes has no whole squares of {config.block}"
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
        )
        self.code_embedding = nn.Embedding(config.codebook_size, width)
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
            nn.init.zeros_(self.align.weight)  # a network that learns this later draws as it did
        self.prefix_positions = nn.Parameter(torch.randn(config.prefix_length, width) * 0.02)
        self.transformer = Transformer(trunk)
        self.writer = BlockWriter(config, trunk) if config.block > 1 else None
        self.final_norm = make_norm(trunk)
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        nn.init.normal_(self.code_embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        self.register_buffer("turns", _turns(config), persistent=False)
        self.register_buffer("order", _order(config), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def _given(self, name: str, condition: Condition, batch: int) -> tuple[Tensor, Tensor] | None:
        """One condition's vectors (B, L, D) and where they are given (B, L) bool; None when it is absent."""
        value: Tensor | None = getattr(condition, name)
        if value is None:
            return None
        if name == "source_codes":
            vectors = self._read(value.flatten(1)[:, self.order])  # (B, N / M, D)
            if condition.source_mask is not None:
                shown = condition.source_mask.flatten(1)[:, self.order]
                return vectors, shown.unflatten(1, (-1, self.config.block_size)).any(-1)
        elif name == "text_features":
            room = self.config.text_length
            vectors = self.projections[name](_fit(value[:, :room], room, left=self.config.hide_padding))
            if condition.text_mask is not None and not self.config.hide_padding:
                return vectors, _fit(condition.text_mask[:, :room], room)
            present = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
            return vectors, _fit(present[:, :room], room, left=self.config.hide_padding)
        else:
            vectors = self.projections[name](value).unsqueeze(1)  # (B, 1, D)
        return vectors, torch.ones(batch, vectors.shape[1], dtype=torch.bool, device=value.device)

    def stands(self, condition: Condition) -> Tensor:
        """Which vectors of the longest prefix there are, (P,) int64: those of a source only where one is given."""
        config, whole = self.config, torch.arange(self.config.prefix_length, device=self.device)
        if condition.source_codes is not None or not (config.source_codes and config.start_token):
            return whole  # without a start token the last vector, whatever it says, predicts the first code
        names = [name for name, _ in config.conditions]
        first = sum(length for _, length in config.conditions[: names.index("source_codes")])
        return torch.cat([whole[:first], whole[first + dict(config.conditions)["source_codes"] :]])

    def prefix(self, condition: Condition, batch: int) -> Tensor:
        """The condition as vectors (B, P, D); in training some conditions are dropped at random."""
        return self._prefix(condition, batch)[0]

    def _prefix(self, condition: Condition, batch: int) -> tuple[Tensor, Tensor | None]:
        """The prefix (B, P, D), and what its source adds where each block is predicted, (B, N / M, D)."""
        device, rate = self.device, self.config.condition_dropout if self.training else 0.0
        keep_any = torch.rand(batch, 1, device=device) >= rate
        parts, stands, added = [], self.stands(condition), None
        for number, (name, _) in enumerate(self.config.conditions):
            if name == "source_codes" and len(stands) < self.config.prefix_length:
                continue
            null = self.nulls[name].expand(batch, -1, -1)  # (B, L, D)
            given = self._given(name, condition, batch)
            keep = keep_any & (torch.rand(batch, 1, device=device) >= rate)
            if given is None:
                parts.append(null)
                continue
            vectors, present = given
            if condition.present is not None:
                keep = keep & condition.present[:, number : number + 1]
            parts.append(torch.where((present & keep).unsqueeze(-1), vectors, null.to(vectors.dtype)))
            if name == "source_codes" and self.align is not None:
                added = self.align(parts[-1])
        if self.start is not None:
            parts.append(self.start.expand(batch, 1, -1))
        return torch.cat(parts, dim=1) + self.prefix_positions[stands], added

    def _mask(self, condition: Condition, length: int) -> Tensor | None:
        """Where a prefix of `length` may be attended to, (B, length) bool; None: everywhere."""
        mask, config = condition.text_mask, self.config
        if mask is None or not (config.hide_padding and config.text_features):
            return None
        mask = _fit(mask.bool(), config.text_length, left=True)  # the text stands first
        return F.pad(mask, (0, length - config.text_length), value=True)

    def forward(self, codes: Tensor, condition: Condition | None = None, cache: KVCache | None = None) -> Tensor:
        """Codes (B, n) int64, n from 0 to N, in the order of writing -> logits (B, n + 1, K): what each code, and the
        next, should be.

        With a `cache` that has seen the prefix, `codes` are the new ones alone and the logits (B, n, K) are
        those of the codes after each of them.
        """
        size = self.config.block_size
        known = codes if cache is None or cache.open is None else torch.cat([cache.open, codes], dim=1)
        whole = known.shape[1] // size * size  # the codes of whole blocks
        hidden = self._blocks(known[:, :whole], condition or Condition(), cache)  # of the blocks after what was seen
        first = 0  # the number of the first code, of those from the open block on, that is predicted now
        if cache is not None:
            if cache.hidden is not None:
                hidden = torch.cat([cache.hidden, hidden], dim=1)
                first = known.shape[1] - codes.shape[1] + 1
            cache.hidden, cache.open = hidden[:, -1:], known[:, whole:]
        skipped = first // size
        hidden, known, first = hidden[:, skipped:], known[:, skipped * size :], first - skipped * size
        x = hidden if self.writer is None else self.writer(hidden, self.code_embedding(known))
        return self.head(self.final_norm(x[:, first : known.shape[1] + 1]))

    def _read(self, codes: Tensor) -> Tensor:
        """Codes of whole blocks (B, n) in the order of writing -> the blocks' vectors (B, n / M, D)."""
        vectors = self.code_embedding(codes)  # (B, n, D)
        return vectors if self.writer is None else self.writer.join(vectors)

    def _blocks(self, codes: Tensor, condition: Condition, cache: KVCache | None) -> Tensor:
        """Codes of whole blocks (B, n) -> what predicts each of them and the next, (B, n / M + 1, D); with a `cache`
        that has seen the prefix, what predicts the blocks after each of these new ones, (B, n / M, D)."""
        batch, x = codes.shape[0], self._read(codes)
        seen = cache.length if cache is not None else 0
        if seen and not x.shape[1]:
            return x
        stands = self.stands(condition)
        prefix = len(stands) if cache is None or not seen else cache.prefix
        first = max(seen - prefix, 0)  # the number of the first of these blocks
        if self.positions is not None:
            x = x + self.positions[first : first + x.shape[1]]
        mask = self._mask(condition, prefix) if not seen else None if cache is None else cache.mask
        if mask is not None:
            mask = F.pad(mask, (0, x.shape[1]), value=True)
        turns = None if self.turns is None else self.turns[:, self.config.prefix_length + first :][:, : x.shape[1]]
        added = None if cache is None else cache.added
        if not seen:
            vectors, added = self._prefix(condition, batch)
            x = torch.cat([vectors.to(x.dtype), x], dim=1)
            turns = None if turns is None or self.turns is None else torch.cat([self.turns[:, stands], turns], dim=1)
        if added is not None:
            x = x + _placed(added, 0 if not seen else first + 1, x.shape[1], prefix - 1 if not seen else 0)
        if cache is not None:
            cache.mask, cache.prefix, cache.added = mask, prefix, added
        x = self.transformer(x, causal=True, mask=mask, turns=turns, cache=cache)
        return x if seen else x[:, prefix - 1 :]  # the last vector in front of the codes predicts the first block

    def make_cache(self) -> KVCache:
        """An empty cache with room for one whole picture."""
        cache = KVCache(self.config.layers)
        cache.reserve(self.config.prefix_length + self.config.code_count // self.config.block_size)
        return cache


class BlockWriter(nn.Module):
    """Between blocks and their codes: the codes of one as a vector, and a vector as the codes of one, in turn."""

    def __init__(self, config: CodeTransformerConfig, trunk: TransformerConfig):
        super().__init__()
        size, width = config.block_size, config.width
        self.size = size
        self.reader = nn.Linear(size * width, width, bias=False)
        self.before = nn.Linear(width, width, bias=False)  # of the code before, where the next is predicted
        self.places = nn.Parameter(torch.randn(size, width) * 0.02)
        self.transformer = Transformer(replace(trunk, layers=config.block_layers))
        with torch.no_grad():  # at first a block is the sum of its codes
            self.reader.weight.copy_(torch.eye(width).repeat(1, size))

    def join(self, vectors: Tensor) -> Tensor:
        """Vectors of codes (B, n, D) -> of their blocks (B, n / M, D)."""
        return self.reader(vectors.unflatten(1, (-1, self.size)).flatten(2))

    def forward(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """What predicts each block (B, b, D), and vectors of the codes from the first of them on (B, n, D), n at most
        b M -> what predicts each code (B, b M, D)."""
        before = F.pad(vectors, (0, 0, 0, hidden.shape[1] * self.size - vectors.shape[1]))
        before = before.unflatten(1, (-1, self.size))[:, :, :-1]  # (B, b, M - 1, D)
        x = F.pad(self.before(before), (0, 0, 1, 0)) + hidden.unsqueeze(2) + self.places  # (B, b, M, D)
        return self.transformer(x.flatten(0, 1), causal=True).view(len(x), -1, x.shape[-1])


def _placed(added: Tensor, first: int, length: int, before: int) -> Tensor:
    """Vectors (B, N, D) from number `first` on, `before` zeros in front of them, as many as make `length` in all."""
    part = added[:, first : first + length - before]
    return F.pad(part, (0, 0, before, length - before - part.shape[1]))


def _projection(config: CodeTransformerConfig, name: str) -> nn.Module:
    """What takes a condition's vectors, or a label, to the trunk's width."""
    source, width = getattr(config, name), config.width
    if name == "labels":
        return nn.Embedding(source, width)
    if name == "text_features" and config.text_projection == "mlp":
        layers = nn.Linear(source, width, bias=False), nn.Linear(width, width, bias=False)
        return nn.Sequential(layers[0], nn.GELU(approximate="tanh"), layers[1])
    return nn.Sequential(nn.Linear(source, width), nn.LayerNorm(width))


def _turns(config: CodeTransformerConfig) -> Tensor | None:
    """Cosines and sines for the prefix and the grid of blocks, (2, prefix_length + N / M, head width / 2)."""
    if config.rotary == "none":
        return None
    silent = config.rotary == "silent"
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in config.blocks), indexing="ij")
    first = 0 if silent else 1  # the prefix sits at the grid's origin
    angles = rotary_angles_2d(rows.flatten() + first, columns.flatten() + first, config.width // config.heads)
    parts = []
    for name, length in [*config.conditions, ("start", int(config.start_token))]:
        if name == "source_codes" and not silent:  # each where the same place of the picture will be
            parts.append(rotations(angles))
        else:
            parts.append(rotations(torch.zeros(length, angles.shape[1])) * (not silent))
    return torch.cat([*parts, rotations(angles)], dim=1)


def _order(config: CodeTransformerConfig) -> Tensor:
    """The places of the grid (N,) in the order of writing: block after block, and within each row after row."""
    places = torch.arange(config.code_count).view(config.blocks[0], config.block, config.blocks[1], config.block)
    return places.transpose(1, 2).flatten()


def _fit(x: Tensor, length: int, left: bool = False) -> Tensor:
    """`x` (B, n, ...) with zeros after it, or on its `left`, up to `length`."""
    missing = length - x.shape[1]
    sides = (missing, 0) if left else (0, missing)
    return F.pad(x, (0, 0) * (x.ndim - 2) + sides)
