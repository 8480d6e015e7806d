"""Self-attention with rotary positions in one and two dimensions, and the cache of keys and values for decoding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 256  # keys up to which the plain products win on a CPU; at 320 the two are even
SHORT_MASKED = 384  # with a mask, which makes the fused kernel slower: at 272 it takes 1.7 times as long


def rotary_angles(positions: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Rotation angles (N, head_width / 2) in radians for 1-D `positions` (N,) (RoFormer, Su et al. 2021, eq. 15)."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)  # (head_width / 2,)
    return positions.float()[:, None] * frequencies


def rotary_angles_2d(rows: Tensor, columns: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Angles (N, head_width / 2) for positions in a grid, `rows` (N,) and `columns` (N,).

    The first half of a head is rotated by the row, the second half by the column.

    Raises:
        ValueError: if `head_width` is not a multiple of 4.
    """
    if head_width % 4:
        raise ValueError(f"a 2-D rotary head width must be a multiple of 4, got {head_width}")
    half = head_width // 2
    return torch.cat([rotary_angles(rows, half, base), rotary_angles(columns, half, base)], dim=1)


def rotary_factors(angles: Tensor) -> Tensor:
    """Angles (N, head_width / 2) -> their cosines and sines (2, N, head_width / 2)."""
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate each pair of neighbouring numbers of `x` (..., N, head_width).

    `rotary` (2, N, head_width / 2) holds the cosines and sines that `rotary_factors` gives.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (..., N, head_width / 2, 2)
    cos, sin = rotary
    first = pairs[..., 0] * cos - pairs[..., 1] * sin
    second = pairs[..., 0] * sin + pairs[..., 1] * cos
    return torch.stack([first, second], dim=-1).flatten(-2).to(x.dtype)  # (..., N, head_width)


class KVCache:
    """Keys and values of the tokens read so far, one pair of buffers a layer, filled from the left.

    `length` is the number of tokens that every layer holds, and so the position of the next one.
    """

    def __init__(self, layers: int):
        self.keys: list[Tensor | None] = [None] * layers  # each (B, heads, room, head_width)
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0
        self.capacity = 0

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all, so that appending copies nothing."""
        self.capacity = length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of n tokens, each (B, heads, n, head_width), to those of one layer.

        Returns the keys and values of all tokens of that layer, each (B, heads, length + n, head_width). `length` grows
        when `advance` is called, once every layer has appended.
        """
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

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, once every layer has appended them."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` (n,) int64, in that order; a row may come several times."""
        for stored in (self.keys, self.values):
            stored[:] = [None if part is None else part[rows] for part in stored]

    @classmethod
    def merge(cls, caches: Sequence["KVCache"], rows: int) -> "KVCache":
        """Caches of the same length as one batch, in their order; one of a single row is repeated `rows` times.

        Every layer of every cache must hold something.
        """
        merged = cls(len(caches[0].keys))
        merged.length, merged.capacity = caches[0].length, caches[0].capacity
        for layer in range(len(merged.keys)):
            merged.keys[layer] = _stacked([cache.keys[layer] for cache in caches], rows)
            merged.values[layer] = _stacked([cache.values[layer] for cache in caches], rows)
        return merged


def _grown(stored: Tensor | None, new: Tensor, room: int, length: int) -> Tensor:
    grown = new.new_empty(new.shape[0], new.shape[1], room, new.shape[3])  # (B, heads, room, head_width)
    if stored is not None:
        grown[:, :, :length] = stored[:, :, :length]
    return grown


def _stacked(parts: Sequence[Tensor | None], rows: int) -> Tensor:
    held = [part for part in parts if part is not None]
    return torch.cat([part.expand(rows, -1, -1, -1) if len(part) == 1 else part for part in held])


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): (B, N, D) -> (B, N, D).

    Raises:
        ValueError: if `heads` does not divide `width`.
    """

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
        rotary: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attend from each token of `x` (B, N, D) to the allowed ones.

        Args:
            causal: a token attends to itself and those before it alone. It attends to itself whatever `mask` says.
            mask: (B, N) bool, True at tokens that may be attended to; or (B or 1, N, N), row i True at all tokens that
                token i attends to, which `causal` does not narrow.
            rotary: (2, N, head_width / 2), the `rotary_factors` of the positions of `x`.
            cache: what earlier calls left. `x` then holds the new tokens alone, attention is causal over old and new
                ones, and `mask` (B, old + N) covers both.
            layer: this layer's number in `cache`.

        Returns:
            (B, N, D).
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
        q, k, v = qkv
        if rotary is not None:
            q, k = rotate(qkv[:2], rotary)
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
        """The output of `forward` for the first token alone, attending to all: (B, N, D) -> (B, 1, D)."""
        width, bias = x.shape[-1], self.qkv.bias
        query_bias, rest_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        q = F.linear(x[:, :1], self.qkv.weight[:width], query_bias)  # (B, 1, D)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
        kv = F.linear(x, self.qkv.weight[width:], rest_bias)  # (B, N, 2 D)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        return self.out(attend(q, k, v, None, False).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    On a CPU, few tokens go through two plain products in training, as the fused kernel's backward pass takes several
    times as long there, and in bfloat16, where the kernel takes 1.5 to 2 times as long.

    Args:
        q: (B, heads, N, head_width).
        k: (B, heads, M, head_width).
        v: (B, heads, M, head_width).
        allowed: bool, broadcast to (B, heads, N, M), True where a query may attend to a key; None: everywhere.
        causal: query i attends to keys 0 to i alone; not together with `allowed`.

    Returns:
        (B, heads, N, head_width).
    """
    short = SHORT if allowed is None else SHORT_MASKED
    plain = q.dtype == torch.bfloat16 or (torch.is_grad_enabled() and q.requires_grad)
    if q.device.type != "cpu" or k.shape[2] > short or not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # (B, heads, N, M)
    if causal:
        allowed = _causal_tail(q.shape[2], k.shape[2], q.device)
    if allowed is not None:
        # the lowest number instead of -inf, which would make nan of a row that may attend to nothing
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def _causal_tail(queries: int, keys: int, device: torch.device, before: int = 0) -> Tensor:
    """Mask (queries, keys) of the last tokens: each sees itself and all before it, less the last `before`."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries - before)
