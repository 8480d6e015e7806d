"""What a code transformer in training draws a picture from besides its text: the picture's own embedding, what is left
of it around a hole, or another picture of the same thing.

One network learns all of these, so that the same weights draw from text, vary pictures, fill holes and translate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.hole_filling import fill_holes
from codebrush.data.sources.caption_templates import Template
from codebrush.errors import DataError, TrainingError
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, CaptionTokens
from codebrush.training.engine.fabric import is_first
from codebrush.training.field_types import Share
from codebrush.training.make_bank import make_bank
from codebrush.training.stage import Materials

GIVEN = ("text_features", "text_embedding", "image_embedding", "source_codes")
SOURCE = GIVEN.index("source_codes")
LEAST_HOLE, MOST_HOLE = 0.05, 0.9  # of a picture's codes
HOLE_TRIES = 100  # to draw a hole of a good size; a grid of two codes or more gives one within a few
WHOLE_TEXT = 0.5  # share of the rows with an embedding that keep their text


@dataclass(frozen=True)
class ConditionShares:
    """The part of a painter's recipe that says what rows are drawn from besides their text.

    `image_share`, `hole_share` and `pair_share` of the rows are drawn from their picture's own CLIP embedding (half of
    them without their text), from what is left around a hole, and from another picture of the same group under one of
    `pair_captions`, templates like "{style} style" (if there are none, the row's own captions). A share above 0 gives
    the network that condition.

    Raises:
        ValueError: if the shares add up to more than 1.
        DataError: if a template cannot be read.
    """

    image_share: Share = 0.0
    hole_share: Share = 0.0
    pair_share: Share = 0.0
    pair_captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image_share + self.hole_share + self.pair_share > 1:
            raise ValueError("image_share, hole_share and pair_share add up to more than 1: lower them")
        for text in self.pair_captions:
            Template.parse(text)

    @property
    def from_source(self) -> bool:
        """Whether some rows are drawn from a source picture."""
        return bool(self.hole_share or self.pair_share)

    def sampler(
        self, data: Captioned, stored: np.ndarray, grid: tuple[int, int], tokenizer: Tokenizer
    ) -> "ConditionSampler":
        """What samples these conditions; see `ConditionSampler`."""
        pair_tokens = None
        if self.pair_share and self.pair_captions:
            pair_tokens = CaptionTokens(OtherCaptions(data, self.pair_captions), tokenizer)
        shares = (self.image_share, self.hole_share, self.pair_share)
        return ConditionSampler(data, stored, grid, CaptionTokens(data, tokenizer), pair_tokens, shares)


@dataclass(frozen=True)
class SampledConditions:
    """The conditions of a batch of B rows. Every tensor holds an entry for each row, or for each of the first rows.

    `tokens` (B, T) are of one caption each. The first I rows are drawn from their embeddings, the next H from what is
    left around a hole, the next P from another picture: `images` uint8 (I, 3, S, S) are the pictures of the first,
    `holed` (I + H, 3, S, S) in [0, 1] those of the second with their holes filled in, as in editing, and `source`
    (I + H + P, N) int64 the stored codes (or latents) of the other pictures. Before them stand zeros; where H or P is 0
    there is no row. `given_rows` tells them apart. `shown` (B, N) is True where the source is visible, `learned` (B, N)
    at the codes that are learned; `present` (B, 4) says which of GIVEN a row has.
    """

    tokens: Tensor
    images: Tensor
    holed: Tensor
    source: Tensor
    shown: Tensor
    learned: Tensor
    present: Tensor


class ConditionSampler:
    """Samples the conditions of the rows of a batch.

    The first rows are drawn from their own embedding, the next from what is left around a hole, the next from another
    picture of their group, as many as each of `shares` says; the rest from their text alone.
    """

    def __init__(
        self,
        data: Captioned,
        stored: np.ndarray,  # (N, h * w) codes of any integer type, or (N, d, h, w) latents
        grid: tuple[int, int],
        tokens: CaptionTokens,
        pair_tokens: CaptionTokens | None,
        shares: tuple[float, float, float],  # of embeddings, holes and pairs
    ):
        self.data, self.stored, self.grid, self.shares = data, stored, grid, shares
        self.tokens, self.pair_tokens = tokens, pair_tokens or tokens
        order = np.argsort(data.groups, kind="stable")
        _, first, counts = np.unique(data.groups[order], return_index=True, return_counts=True)
        self._members = np.split(order, first[1:])
        self._group = np.repeat(np.arange(len(counts)), counts)[np.argsort(order, kind="stable")]  # (N,)

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> SampledConditions:
        """Draw the conditions of the rows (B,) of one batch."""
        count, size = len(rows), self.grid[0] * self.grid[1]
        embedded, holed, paired = rows_of_each(count, self.shares)
        tokens = self.tokens.draw(rows, rng)
        shown, learned = torch.ones(count, size, dtype=torch.bool), torch.ones(count, size, dtype=torch.bool)
        present = torch.tensor([True, True, False, False]).repeat(count, 1)
        present[embedded, 2] = True
        present[embedded, :2] = torch.from_numpy(rng.random(embedded.stop) < WHOLE_TEXT)[:, None]
        present[holed.start : paired.stop, 3] = True
        holes = [torch.from_numpy(random_hole(self.grid, rng)) for _ in rows[holed]]
        for row, hole in zip(range(holed.start, holed.stop), holes, strict=True):
            shown[row], learned[row] = ~hole.flatten(), hole.flatten()
        dtype = torch.int64 if np.issubdtype(self.stored.dtype, np.integer) else torch.float32
        source = torch.zeros((paired.stop - paired.start, *self.stored.shape[1:]), dtype=dtype)
        if len(source):
            tokens[paired] = self.pair_tokens.draw(rows[paired], rng)
        for place, row in enumerate(range(paired.start, paired.stop)):
            other = self.partner(int(rows[row]), rng)
            if other is None:  # no other picture of this group: its text is enough
                shown[row] = False
                tokens[row] = self.tokens.draw(rows[row : row + 1], rng)[0]
            else:
                source[place] = torch.as_tensor(
                    np.array(self.stored[other], dtype=np.float32 if dtype.is_floating_point else np.int64)
                )
        images = self.data.images(rows[: holed.stop])
        seen, rest = images[embedded], images[holed].float() / 255
        filled, source = _behind(holed.start, _without(rest, holes)), _behind(paired.start, source)
        return SampledConditions(tokens, seen, filled, source, shown, learned, present)

    def partner(self, row: int, rng: np.random.Generator) -> int | None:
        """Another row of the same group; None if there is none."""
        members = self._members[self._group[row]]
        others = members[members != row]
        return int(others[int(rng.integers(len(others)))]) if len(others) else None


def image_embeddings(clip: CLIP, images: Tensor, rows: int) -> Tensor:
    """Unit vectors of pictures uint8 (I, 3, S, S) by `clip`, and zeros for the rows after them: (rows, E)."""
    embedding = torch.zeros(rows, clip.embed_dim, device=images.device)
    if len(images):
        embedding[: len(images)] = clip.encode_image(images.float() / 255)
    return embedding


def with_bank(materials: Materials, seconds: float | None) -> Materials:
    """The materials with a bank of pictures for a painter that reads their embeddings, unless one is there."""
    if "bank" in materials.models or not is_first():
        return materials
    bank = make_bank(materials.need(CLIP), materials.stored, seconds=seconds)
    return replace(materials, models={**materials.models, "bank": bank})


def rows_of_each(count: int, shares: Sequence[float]) -> list[slice]:
    """Consecutive slices of the first of `count` rows, each as large as its share says and at least one row for a share
    above 0. Raises TrainingError if there are too few rows."""
    counts = [max(1, round(count * share)) if share else 0 for share in shares]
    if sum(counts) > count:
        raise TrainingError(
            f"{count} rows per process are too few for the recipe's image_share, hole_share and pair_share: raise "
            "loop.batch_size"
        )
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [slice(end - size, end) for end, size in zip(ends, counts, strict=True)]


def given_rows(batch: Mapping[str, Tensor]) -> list[slice]:
    """The rows of a batch of `SampledConditions`, or of a part of one, that are drawn from their embeddings, from what
    is left around a hole, and from another picture."""
    ends = accumulate((len(batch[name]) for name in ("images", "holed", "source")), max, initial=0)
    return [slice(start, end) for start, end in pairwise(ends)]


def _behind(first: int, values: Tensor) -> Tensor:
    """`values` of the rows from `first` on, with zeros for those before; empty if there are none."""
    return torch.cat([values.new_zeros(first, *values.shape[1:]), values]) if len(values) else values


def _without(images: Tensor, holes: Sequence[Tensor]) -> Tensor:
    """Images (H, 3, S, S) in [0, 1] with the codes in each of `holes` (h, w) bool filled in from their surroundings."""
    if not holes:
        return images
    hole = torch.stack(list(holes)).float()[:, None]  # (H, 1, h, w)
    return fill_holes(images, F.interpolate(hole, images.shape[-2:], mode="nearest")[:, 0] > 0)


def random_hole(grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Codes to be filled in, (h, w) bool: a box, one side of a line, or scattered ones.

    At least one code is to be filled in and, if the grid has more than one, at least one is not.
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


class OtherCaptions:
    """The rows of a source with captions of other templates, for `CaptionTokens`.

    Raises:
        DataError: if a template names a column that the source lacks.
    """

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
        """The captions that the templates make of a row; the row's own captions if they make none."""
        cell = partial(self.data.source.cell, self.data.pixels.rows[row])
        captions = [text for template in self.templates for text in template.fill(cell)]
        return captions or self.data.captions(row)
