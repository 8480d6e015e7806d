"""What a captioner learns about places in drawn scenes: labels of patches, and the cells of objects named in a text.

A question has one answer, but a scene has dozens of patches whose contents are all known. A captioner that also has to
label the patches learns in hundreds of steps what answers alone teach it in many thousands. The same holds for names:
"is the red circle above the star?" teaches neither place until both, and "above", are understood.
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

# of a label, and how many values each has: the shape here, its colour, whether its middle is here; 0 is nothing
PARTS = (1 + len(SHAPES), 1 + len(PALETTE), 2)
UNKNOWN = -1
_COLOURS = tuple(PALETTE)
_NAME = re.compile(rf"(?:\b({'|'.join(_COLOURS)}) )?\b({'|'.join(SHAPES)})\b")


def label_patches(objects: Sequence[SceneObject], size: int, side: int) -> np.ndarray:
    """What each patch of a `side` x `side` grid shows: (side * side, 3) int64, one number for each of PARTS."""
    labels = np.zeros((side, side, len(PARTS)), dtype=np.int64)
    for each in objects:
        kind = (1 + SHAPES.index(each.shape), 1 + _COLOURS.index(each.colour))
        left, top, right, bottom = (value * side / size for value in each.box)
        rows, columns = (slice(_first(low), _first(high)) for low, high in ((top, bottom), (left, right)))
        labels[rows, columns, :2] = kind
        labels[divmod(_middle(each, size, side), side)] = (*kind, 1)
    return labels.reshape(side * side, len(PARTS))


def named_cells(text: str, objects: Sequence[SceneObject], size: int, side: int) -> Iterator[tuple[int, int]]:
    """For each name in `text` that fits exactly one object: the index at which it ends, and the cell of a `side` x
    `side` grid that the object's middle lies in, row * side + column."""
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


def patch_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, P, sum of PARTS) with labels (B, P, 3), averaged over the known ones; 0 if there are
    none."""
    known = (labels != UNKNOWN).sum().clamp_min(1)
    losses = [
        F.cross_entropy(part.flatten(0, 1).float(), aim.flatten(), ignore_index=UNKNOWN, reduction="sum")
        for part, aim in zip(logits.split(PARTS, dim=-1), labels.unbind(-1), strict=True)
    ]
    return torch.stack(losses).sum() / known


def place_loss(logits: Tensor, cells: Tensor) -> Tensor:
    """Cross-entropy of logits (n, 2, side), of columns and of rows, with cells (n,): the sum of both means, 0 if n is
    0."""
    side = logits.shape[-1]
    aims = torch.stack([cells % side, cells // side], dim=1)
    return F.cross_entropy(logits.float().flatten(0, 1), aims.flatten(), reduction="sum") / max(1, len(cells))
