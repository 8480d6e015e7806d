"""The order in which the code transformer draws a grid of codes, and their rotary positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from codebrush.models.layers.attention import rotary_angles_2d, rotary_factors


def drawing_order(grid: tuple[int, int], block: int) -> Tensor:
    """The places of a grid (h, w), counted in raster order, in the order of drawing: (h w,) int64.

    Square after square of side `block`, and row after row within each.
    """
    rows, columns = grid[0] // block, grid[1] // block
    places = torch.arange(grid[0] * grid[1]).view(rows, block, columns, block)
    return places.transpose(1, 2).flatten()


def prefix_and_grid_factors(
    conditions: Sequence[tuple[str, int]], blocks: tuple[int, int], head_width: int, silent: bool
) -> Tensor:
    """Rotary factors of a condition prefix of P vectors and of the b blocks behind it, (2, P + b, head_width / 2).

    The prefix is at (0, 0) and the blocks from (1, 1) on; those of a source picture are where the same blocks of
    the new one are. `silent` is LlamaGen's way: blocks from (0, 0) on, and factors 0 for the prefix.

    Args:
        conditions: name and length of each part of the prefix, in order.
        blocks: rows and columns of blocks.
        head_width: width of an attention head, a multiple of 4.
        silent: see above.
    """
    first = 0 if silent else 1
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in blocks), indexing="ij")
    angles = rotary_angles_2d(rows.flatten() + first, columns.flatten() + first, head_width)  # (b, head_width / 2)
    parts = []
    for name, length in conditions:
        if name == "source_codes" and not silent:
            parts.append(rotary_factors(angles))
        else:
            parts.append(rotary_factors(torch.zeros(length, angles.shape[1])) * (not silent))
    return torch.cat([*parts, rotary_factors(angles)], dim=1)
