"""The objects of a drawn scene in; what each patch of a grid lies in and where the words of a text point, and the loss
of patches and words that should know it, out.

A question has one answer; a scene has dozens of patches, and of each it is known what it lies in. A captioner whose
patches are asked as well finds out in hundreds of steps what answers alone teach it in many thousands. So with words:
"is the red circle above the star?" says nothing about either place until both and "above" are understood.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.synthetic.outlines import SHAPES
from codebrush.data.synthetic.shapes import SceneObject
from codebrush.data.synthetic.varied_scenes import PALETTE

PARTS = (1 + len(SHAPES), 1 + len(PALETTE), 2)  # the shape here, its colour, whether its middle is here; 0 is nothing
UNKNOWN = -1
_COLOURS = tuple(PALETTE)
_NAME = re.compile(rf"(?:\b({'|'.join(_COLOURS)}) )?\b({'|'.join(SHAPES)})\b")


def patch_sights(objects: Sequence[SceneObject], size: int, side: int) -> np.ndarray:
    """What each patch of a `side` x `side` grid lies in: (side * side, 3) int64, one number of each of PARTS."""
    sights = np.zeros((side, side, len(PARTS)), dtype=np.int64)
    for each in objects:
        kind = (1 + SHAPES.index(each.shape), 1 + _COLOURS.index(each.colour))
        left, top, right, bottom = (value * side / size for value in each.box)
        rows, columns = (slice(_first(low), _first(high)) for low, high in ((top, bottom), (left, right)))
        sights[rows, columns, :2] = kind
        sights[divmod(_middle(each, size, side), side)] = (*kind, 1)
    return sights.reshape(side * side, len(PARTS))


def named_cells(text: str, objects: Sequence[SceneObject], size: int, side: int) -> Iterator[tuple[int, int]]:
    """Where a name in `text` ends that fits one object alone, and in which cell of a `side` x `side` grid its middle
    is, row * side + column."""
    for name in _NAME.finditer(text):
        colour, shape = name.groups()
        fitting = [each for each in objects if each.shape == shape and colour in (None, each.colour)]
        if len(fitting) == 1:
            yield name.end(), _middle(fitting[0], size, side)


def _middle(each: SceneObject, size: int, side: int) -> int:
    """The cell of a `side` x `side` grid that an object's middle lies in, row * side + column."""
    column, row = (min(side - 1, int(value * side / size)) for value in each.centre)
    return row * side + column


def _first(edge: float) -> int:
    """The first patch whose middle lies beyond an edge, in patches."""
    return max(0, int(np.ceil(edge - 0.5)))


def sight_loss(logits: Tensor, sights: Tensor) -> Tensor:
    """Cross-entropy of logits (B, P, sum of PARTS) with sights (B, P, 3), the mean over those that are known; 0 if none
    is."""
    known = (sights != UNKNOWN).sum().clamp_min(1)
    losses = [
        F.cross_entropy(part.flatten(0, 1).float(), aim.flatten(), ignore_index=UNKNOWN, reduction="sum")
        for part, aim in zip(logits.split(PARTS, dim=-1), sights.unbind(-1), strict=True)
    ]
    return torch.stack(losses).sum() / known


def place_loss(logits: Tensor, cells: Tensor) -> Tensor:
    """Cross-entropy of logits (n, 2, side), of columns and of rows, with cells (n,); the sum of the two means, 0
    without a cell."""
    side = logits.shape[-1]
    aims = torch.stack([cells % side, cells // side], dim=1)
    return F.cross_entropy(logits.float().flatten(0, 1), aims.flatten(), reduction="sum") / max(1, len(cells))
