"""Attention over a sequence: rotary positions in one and two dimensions, and the cache for decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 256  # keys up to which the plain products win on a CPU; at 320 the two are even
SHORT_MASKED = 384  # with a mask, which makes the fused kernel slower: at 272 it takes 1.7 times as long


def rotary_angles(positions: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Rotation angles (N, head_width / 2) of 1-D `positions` (N,) (RoFormer, Su et al. 2021, section 3.2)."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    return positions.float()[:, None] * frequencies


def rotary_angles_2d(rows: Tensor, columns: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Angles (N, head_width / 2) for grid positions: the first half turns with the row, the rest with the column."""
    if head_width % 4:
        raise ValueError(f"a 2-D rotary head width must be a multiple of 4, got {head_width}")
    half = head_width // 2
    return torch.cat([rotary_angles(rows, half, base), rotary_angles(columns, half, base)], dim=1)


def rotations(angles: Tensor) -> Tensor:
    """Angles (N, head_width / 2) -> their cosines and sines (2, N, head_width / 2)."""
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each neighbouring pair of `x` (B, heads, N, head_width) by cosines and sines (2, N, head_width / 2)."""
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, heads, N, head_width / 2, 2)
    cos, sin = turns
    first = pairs[..., 0] * cos - pairs[..., 1] * sin
    second = pairs[..., 0] * sin + pairs[..., 1] * cos
    return torch.stack([first, second], dim=-1).flatten(-2).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, one pair of buffers a layer, filled from the left."""

    def __init__(self, layers: int):
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0
        self.prefix = 0  # how many of the tokens stand in front of what is drawn
        self.capacity = 0
        self.added: Tensor | None = None  # (B, N, D): what a source adds to each token
        self.mask: Tensor | None = None  # (B, n) bool: which of the first n tokens may be attended to; None: all
        self.hidden: Tensor | None = None  # (B, 1, D): what predicts the block that is being written
        self.open: Tensor | None = None  # (B, m) int64: its codes so far

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all, so that appending copies nothing."""
        self.capacity = length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, heads, n, head_width) for one layer; returns everything that layer has seen."""
        end = self.length + keys.shape[2]
        stored_keys, stored_values = self.keys[layer], self.values[layer]
        if stored_keys is None or stored_values is None or stored_keys.shape[2] < end:
            room = max(end, self.capacity)
            stored_keys = _grown(stored_keys, keys, room, self.length)
            stored_values = _grown(stored_values, values, room, self.length)
            self.keys[layer], self.values[layer] = stored_keys, stored_values
        stored_keys[:, :, self.length : end] = keys
        stored_values[:, :, self.length : end] = values
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` (n,), in that order; a row may come several times."""
        for stored in (self.keys, self.values):
            stored[:] = [None if part is None else part[rows] for part in stored]
        for name in ("mask", "added", "hidden", "open"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[rows])

    def advance(self, tokens: int) -> None:
        """Count `tokens` as seen, once every layer has appended them."""
        self.length += tokens


def _grown(stored: Tensor | None, new: Tensor, room: int, length: int) -> Tensor:
    grown = new.new_empty(new.shape[0], new.shape[1], room, new.shape[3])
    if stored is not None:
        grown[:, :, :length] = stored[:, :, :length]
    return grown


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
        turns: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """`mask` (B, N) is True at tokens that may be attended to; `turns` are this call's `rotations`.

        With a `cache`, x holds only the new tokens, attention is causal over the old and the new, and `mask` covers
        both. With causal attention every token sees itself, whatever the mask says. A `mask` (B or 1, N, N) says all
        by itself: row i is True at the tokens that token i attends to.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        whole = mask is not None and mask.ndim == 3
        allowed = None if mask is None else mask[:, None] if whole else mask[:, None, None, :]
        if cache is not None:
            k, v = cache.append(layer, k, v)
            causal = q.shape[2] > 1
        if causal and not whole and (allowed is not None or cache is not None):
            past = _causal_tail(q.shape[2], k.shape[2], x.device)
            own = past & ~_causal_tail(q.shape[2], k.shape[2], x.device, before=1)
            allowed = past if allowed is None else (allowed & past) | own
            causal = False
        y = attend(q, k, v, allowed, causal and not whole)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, N, D)

    def first(self, x: Tensor) -> Tensor:
        """What `forward` gives for the first token, which attends to all: (B, N, D) -> (B, 1, D)."""
        width, bias = x.shape[-1], self.qkv.bias
        query_bias, rest_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        q = F.linear(x[:, :1], self.qkv.weight[:width], query_bias)  # (B, 1, D)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
        kv = F.linear(x, self.qkv.weight[width:], rest_bias)  # (B, N, 2 D)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        return self.out(attend(q, k, v, None, False).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention over (B, heads, N, head_width); `allowed` is a bool mask or None.

    While training on a CPU, a few tokens go through two plain products: the fused kernel's backward pass takes
    several times as long there.
    """
    short = SHORT if allowed is None else SHORT_MASKED
    if q.device.type != "cpu" or k.shape[2] > short or not (torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # (B, heads, N, N)
    if causal:
        allowed = _causal_tail(q.shape[2], k.shape[2], q.device)
    if allowed is not None:
        # the least number and not -inf: a row that may attend to nothing must not turn into nan
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def _causal_tail(queries: int, keys: int, device: torch.device, before: int = 0) -> Tensor:
    """What the last `queries` of `keys` tokens may see: themselves and all before, or what is `before` tokens back."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries - before)
