"""Rows of a batch in; what each picture is to be drawn from besides its text out: its own embedding, what is left of it
around a hole, or another picture of the same thing.

One network learns all of it, so that the same weights draw from words, vary, fill holes and translate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.hole_filling import fill_holes
from codebrush.data.sources.caption_templates import Template
from codebrush.errors import DataError, TrainingError
from codebrush.training.dataset import Captioned, CaptionTokens

GIVEN = ("text_features", "text_embedding", "image_embedding", "source_codes")
SOURCE = GIVEN.index("source_codes")
LEAST_HOLE, MOST_HOLE = 0.05, 0.9  # of a picture's codes
HOLE_TRIES = 100  # of a hole of a good size; a grid of two codes or more has one within a few
WHOLE_TEXT = 0.5  # of the rows with an embedding that have a text as well


@dataclass(frozen=True)
class Drawn:
    """One batch of B rows, as tensors that travel to the device together.

    `images` uint8 (I, 3, S, S) are those of the first I rows, whose embeddings count, and `holed` (H, 3, S, S) in
    [0, 1] those of the next H with their holes filled in, as an editor shows them; `source` (P, N) int64 are the codes
    of other pictures for the P rows after them. `shown` (B, N) is True where a source is, `asked` (B, N) at codes that
    are learned; `present` (B, 4) says which of GIVEN a row has.
    """

    tokens: Tensor
    images: Tensor
    holed: Tensor
    source: Tensor
    shown: Tensor
    asked: Tensor
    present: Tensor


class Drawer:
    """Draws what the rows of a batch are drawn from.

    The first rows have their own embedding, those after them a hole, the next another picture of their group, as many
    as each share says; the rest have their text alone.
    """

    def __init__(
        self,
        data: Captioned,
        codes: np.ndarray,  # (N, h * w)
        grid: tuple[int, int],
        tokens: CaptionTokens,
        pair_tokens: CaptionTokens | None,
        shares: tuple[float, float, float],  # of embeddings, holes and pairs
    ):
        self.data, self.codes, self.grid, self.shares = data, codes, grid, shares
        self.tokens, self.pair_tokens = tokens, pair_tokens or tokens
        order = np.argsort(data.groups, kind="stable")
        _, first, counts = np.unique(data.groups[order], return_index=True, return_counts=True)
        self._members = np.split(order, first[1:])
        self._group = np.repeat(np.arange(len(counts)), counts)[np.argsort(order, kind="stable")]  # (N,)

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Everything but the codes of one batch."""
        count, size = len(rows), self.grid[0] * self.grid[1]
        embedded, holed, paired = rows_of_each(count, self.shares)
        tokens = self.tokens.draw(rows, rng)
        shown, asked = torch.ones(count, size, dtype=torch.bool), torch.ones(count, size, dtype=torch.bool)
        present = torch.tensor([True, True, False, False]).repeat(count, 1)
        present[embedded, 2] = True
        present[embedded, :2] = torch.from_numpy(rng.random(embedded.stop) < WHOLE_TEXT)[:, None]
        present[holed.start : paired.stop, 3] = True
        holes = [torch.from_numpy(random_hole(self.grid, rng)) for _ in rows[holed]]
        for row, hole in zip(range(holed.start, holed.stop), holes, strict=True):
            shown[row], asked[row] = ~hole.flatten(), hole.flatten()
        source = torch.zeros(paired.stop - paired.start, size, dtype=torch.int64)
        if len(source):
            tokens[paired] = self.pair_tokens.draw(rows[paired], rng)
        for place, row in enumerate(range(paired.start, paired.stop)):
            other = self.partner(int(rows[row]), rng)
            if other is None:  # nothing else shows this: its text will do
                shown[row] = False
                tokens[row] = self.tokens.draw(rows[row : row + 1], rng)[0]
            else:
                source[place] = torch.from_numpy(self.codes[other].astype(np.int64))
        images = self.data.images(rows[: holed.stop])
        seen, rest = images[embedded], images[holed].float() / 255
        return Drawn(tokens, seen, _without(rest, holes), source, shown, asked, present)

    def partner(self, row: int, rng: np.random.Generator) -> int | None:
        """Another row of the same group, None where there is none."""
        members = self._members[self._group[row]]
        others = members[members != row]
        return int(others[int(rng.integers(len(others)))]) if len(others) else None


def rows_of_each(count: int, shares: Sequence[float]) -> list[slice]:
    """The first of `count` rows, one part after the other as large as each of `shares` says: none that is above 0 is
    without a row. Raises TrainingError where there are too few rows for that."""
    counts = [max(1, round(count * share)) if share else 0 for share in shares]
    if sum(counts) > count:
        raise TrainingError(
            f"{count} rows a process are too few for the recipe's image_share, hole_share and pair_share: raise "
            "loop.batch_size"
        )
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [slice(end - size, end) for end, size in zip(ends, counts, strict=True)]


def _without(images: Tensor, holes: Sequence[Tensor]) -> Tensor:
    """Images (H, 3, S, S) in [0, 1] with the codes of each of `holes` (h, w) bool filled in from around."""
    if not holes:
        return images
    hole = torch.stack(list(holes)).float()[:, None]  # (H, 1, h, w)
    return fill_holes(images, F.interpolate(hole, images.shape[-2:], mode="nearest")[:, 0] > 0)


def random_hole(grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Codes to be filled in, (h, w) bool: a box, one side of a line, or here and there.

    Never none, and never all unless there is just one.
    """
    rows, columns = grid
    for _ in range(HOLE_TRIES):
        kind, hole = rng.random(), np.zeros(grid, dtype=bool)
        if kind < 0.55:
            tall, wide = (int(rng.integers(1, side + 1)) for side in grid)
            top, left = int(rng.integers(rows - tall + 1)), int(rng.integers(columns - wide + 1))
            hole[top : top + tall, left : left + wide] = True
        elif kind < 0.8:
            along, end = int(rng.integers(2)), rng.random() < 0.5
            cut = int(rng.integers(1, max(2, grid[along])))
            side = np.arange(grid[along]) < cut
            side = side if end else ~side
            hole |= side[:, None] if along == 0 else side[None]
        else:
            hole = rng.random(grid) < rng.uniform(LEAST_HOLE, MOST_HOLE)
        if 0 < hole.sum() < hole.size and hole.mean() <= MOST_HOLE:
            return hole
    hole = np.zeros(grid, dtype=bool)
    hole.flat[rng.integers(hole.size)] = True
    return hole


class Retold:
    """The rows of a source with captions of other templates, for `CaptionTokens`. Raises DataError for a template
    that names a column which is not there."""

    def __init__(self, data: Captioned, templates: Sequence[str]):
        self.data = data
        self.templates = [Template.parse(text) for text in templates]
        there = data.source.schema.names
        for template, column in ((each, column) for each in self.templates for column in each.columns):
            if column not in there:
                name = f'{data.source.origin}: the caption template "{template.text}"'
                raise DataError(f"{name} needs the column {column}; there are {', '.join(there)}")

    def __len__(self) -> int:
        return len(self.data)

    def captions(self, row: int) -> list[str]:
        """What the templates make of a row; its own captions where they make nothing."""
        cells = self.data.source.row(self.data.pixels.rows[row])
        told = [text for template in self.templates for text in template.fill(cells.__getitem__)]
        return told or self.data.captions(row)
