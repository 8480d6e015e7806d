"""Decodes latents for guidance within less memory: in overlapping tiles, or with activations recomputed.

Also how large the tiles are, and how a seamless picture is decoded.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codebrush.models.layers.convolution import GroupNormSiLU, fast_layout
from codebrush.models.vqgan import VQGAN, Level

LARGE_PICTURE = 1024 * 1024  # pixels; larger pictures are tiled unless a tile size is given
TILE_PIXELS = 512  # side of those tiles
SEAM = 8  # cells of the opposite side around a seamless picture while it is decoded


@dataclass(frozen=True)
class DecodePlan:
    """How the decoder runs. Checkpoints, and a tile that covers everything, change nothing but rounding."""

    checkpoint: bool = False  # recompute activations in the backward pass instead of keeping them; tiles always do
    tile: int = 0  # side in cells of the parts that are differentiated; 0: the whole picture at once
    overlap: int = 4  # cells that neighbouring tiles share
    seamless: bool = False  # decode so that opposite edges of the picture fit together


def tile_cells(pixels: int, size: tuple[int, int], factor: int) -> int:
    """Side in cells of tiles of `pixels`; for 0 the default if `size` (H, W) is a large picture, else 0: no tiles."""
    if not pixels and size[0] * size[1] > LARGE_PICTURE:
        pixels = TILE_PIXELS
    return -(-pixels // factor)


def decode(vqgan: VQGAN, quantised: Tensor, plan: DecodePlan) -> Tensor:
    """Decode a quantised latent (B, d, h, w) as images (B, 3, H, W) in the range of `VQGAN.decode`: [0, 1], unclamped.

    A seamless picture is decoded with its opposite side repeated around it, and cropped. Tiles save what autograd
    keeps, so they are used only if a gradient is wanted. They are normalised by the statistics of the whole picture,
    which the gradient treats as constants, and blended by linear ramps; attention does not reach beyond its tile.
    """
    if not plan.seamless:
        return _decode_tiles(vqgan, quantised, plan)
    height, width = quantised.shape[-2:]
    rows = torch.arange(-SEAM, height + SEAM, device=quantised.device) % height
    columns = torch.arange(-SEAM, width + SEAM, device=quantised.device) % width
    wide = _decode_tiles(vqgan, quantised[:, :, rows][..., columns], plan)  # (B, 3, H + 2 edge, W + 2 edge)
    edge = SEAM * vqgan.factor
    return wide[..., edge:-edge, edge:-edge]


def _decode_tiles(vqgan: VQGAN, quantised: Tensor, plan: DecodePlan) -> Tensor:
    height, width = quantised.shape[-2:]
    if not (torch.is_grad_enabled() and quantised.requires_grad):
        return vqgan.decode(quantised)
    if not plan.tile or (plan.tile >= height and plan.tile >= width):
        return _decode_levels(vqgan, quantised) if plan.checkpoint else vqgan.decode(quantised)
    down, across = _spans(height, plan.tile, plan.overlap), _spans(width, plan.tile, plan.overlap)
    run, factor = _decode_with_statistics_of(vqgan, quantised), vqgan.factor
    total = quantised.new_zeros(len(quantised), 3, height * factor, width * factor)
    weights = quantised.new_zeros(1, 1, height * factor, width * factor)
    for rows in down:
        for columns in across:
            part = quantised[:, :, rows.start : rows.stop, columns.start : columns.stop]
            tile = _checkpointed(run, part)  # kept, the tiles would take more than the whole, by their overlaps
            ramp = _ramp(rows, height, plan.overlap, factor, tile)[:, None] * _ramp(
                columns, width, plan.overlap, factor, tile
            )
            place = [columns.start * factor, (width - columns.stop) * factor]
            place += [rows.start * factor, (height - rows.stop) * factor]  # in the order of `pad`: the last axis first
            total = total + F.pad(tile * ramp, place)
            weights = weights + F.pad(ramp[None, None], place)
    return total / weights


class _FrozenStatisticsNorm(nn.Module):
    """A GroupNorm, with its SiLU if it has one, that normalises by the statistics of the first map that it is given."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.norm, self.silu = norm, isinstance(norm, GroupNormSiLU)
        self.statistics: tuple[Tensor, Tensor] | None = None  # mean and 1 / deviation, each (B, groups)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = norm.weight.to(wide), norm.bias.to(wide)
        if self.statistics is None:
            batch, channels, height, width = x.shape
            y, mean, scale = torch.native_group_norm(
                x.to(wide), weight, bias, batch, channels, height * width, norm.num_groups, norm.eps
            )
            self.statistics = mean, scale
        else:
            each = x.shape[1] // norm.num_groups
            mean, scale = (part.repeat_interleave(each, dim=1) for part in self.statistics)  # (B, C)
            scale = scale * weight
            y = torch.addcmul((bias - mean * scale)[..., None, None], x, scale[..., None, None])
        return (F.silu(y) if self.silu else y).to(x.dtype)


def _decode_with_statistics_of(vqgan: VQGAN, quantised: Tensor) -> Callable[[Tensor], Tensor]:
    """`vqgan.decode` for parts of `quantised`, each normalised by the statistics of the whole.

    By its own statistics a tile of even colour would be stretched to the contrast of a whole picture. Those of the
    whole come from decoding it without a gradient, which takes a fifth of the time and a fraction of the memory.
    """
    weights = {id(weight): weight for weight in vqgan.parameters()}
    decoder = copy.deepcopy(vqgan.decoder, weights)  # other modules around the same weights
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.GroupNorm):
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, _FrozenStatisticsNorm(module))

    def run(part: Tensor) -> Tensor:
        return (decoder(vqgan.post_quant_conv(part)) + 1) / 2

    with torch.no_grad():
        run(quantised)
    return run


def _spans(length: int, tile: int, overlap: int) -> list[range]:
    """Evenly spaced ranges of at most `tile` cells that cover `length`; neighbours share at least `overlap` cells."""
    if tile >= length:
        return [range(length)]
    overlap = min(overlap, tile - 1)
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    return [range(start, start + tile) for start in starts]


def _ramp(span: range, length: int, overlap: int, factor: int, like: Tensor) -> Tensor:
    """Blending weights of a tile's pixels along one axis: they rise over the overlap at edges that have a neighbour."""
    place = torch.arange(len(span) * factor, device=like.device, dtype=torch.float32) + 0.5
    reach = max(1, overlap * factor)
    weights = torch.ones_like(place)
    if span.start:
        weights = weights * (place / reach).clamp(max=1)
    if span.stop < length:
        weights = weights * ((len(place) - place) / reach).clamp(max=1)
    return weights.to(like.dtype)


def _checkpointed(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # The decoder is deterministic: there is no random state to restore.
    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]


def _decode_levels(vqgan: VQGAN, quantised: Tensor) -> Tensor:
    """`vqgan.decode` with a checkpoint at each block, so that the activations of only one block are kept at a time."""
    decoder = vqgan.decoder
    x = decoder.conv_in(fast_layout(vqgan.post_quant_conv(quantised)))
    x = _checkpointed(decoder.mid, x)
    for level in reversed(decoder.up):
        assert isinstance(level, Level)
        for index, block in enumerate(level.block):
            x = _checkpointed(block, x)
            if level.attn:
                x = _checkpointed(level.attn[index], x)
        if level.resize:
            x = _checkpointed(level.get_submodule(level.resize), x)
    ends: list[nn.Module] = [decoder.norm_out, decoder.conv_out]
    for module in ends:
        x = _checkpointed(module, x)
    return (x + 1) / 2
