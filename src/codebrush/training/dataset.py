"""What every stage trains on: decoded pixels, captions and their tokens, and groups, of one source or two."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from codebrush.data.decoding.images import size_of
from codebrush.data.pixel_cache import PixelCache, decode_once
from codebrush.data.sources.captioned_images import CaptionedImages, open_source
from codebrush.errors import DataError
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.field_types import Count, Rate, Whole


@dataclass(frozen=True)
class SourceConfig:
    """Which pictures of which source to use; see `codebrush.data.sources.captioned_images.open_source`.

    `weight` names a column of numbers: how often an epoch shows each row (1 without it; 0.1: in one epoch of ten).

    Shards and Parquet files are streamed (see `codebrush.training.streamed`) if they are far away, part of a mix, or
    larger than `LARGE` where the stage can; `stream` says it of a source on its own. `open_shards` are read side by
    side, which is how well the rows are shuffled, `workers` threads decode them (None: as many as there are
    processors), and of several sources each gets its `share` of the rows.
    """

    source: str
    split: str | None = None
    where: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    group: str | None = None
    image_column: str | None = None
    limit: Count | None = None
    exclude: tuple[str, ...] = ()
    strict: bool = False
    weight: str | None = None
    stream: bool | None = None
    open_shards: Count = 16
    workers: Whole | None = None
    share: Rate = 1.0

    def open(self) -> CaptionedImages:
        """The rows that this config names."""
        return open_source(
            self.source,
            split=self.split,
            where=self.where,
            captions=self.captions,
            image_column=self.image_column,
            group=self.group,
            limit=self.limit,
            exclude=self.exclude,
            strict=self.strict,
        )


def evenly(total: int, count: int) -> np.ndarray:
    """Up to `count` of the numbers 0 to total - 1, evenly spaced, int64."""
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


@dataclass(frozen=True)
class Captioned:
    """The readable rows of a source, with pictures of one size. Row numbers are those of `pixels`, 0 to N - 1."""

    source: CaptionedImages
    pixels: PixelCache
    groups: np.ndarray  # (N,) int64, equal for rows that show the same thing
    weight: str | None = None  # the column of `weights`

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """The side of the pictures, in pixels."""
        return self.pixels.pixels.shape[1]

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the source."""
        return self.source.fingerprint

    @property
    def skipped(self) -> int:
        """How many pictures of the source could not be decoded."""
        return len(self.pixels.skipped)

    def sample(self, count: int) -> np.ndarray:
        """Up to `count` rows, evenly spaced."""
        return evenly(len(self), count)

    def part(self, rows: np.ndarray) -> "Captioned":
        """Only the `rows` of these, in that order."""
        kept = tuple(self.pixels.rows[row] for row in rows)
        pixels = replace(self.pixels, pixels=self.pixels.pixels[rows], rows=kept)
        return Captioned(self.source, pixels, self.groups[rows], self.weight)

    @cached_property
    def weights(self) -> np.ndarray | None:
        """How often an epoch shows each row, (N,) float64; None: once.

        Raises:
            DataError: if there is no column `weight`, or a cell of it is no number of 0 or more, or all are 0.
        """
        return None if self.weight is None else _weights(self.source, self.pixels.rows, self.weight)

    def images(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """The pictures of `rows`, (B, 3, S, S) uint8."""
        return self.pixels.batch(rows)

    def captions(self, row: int) -> list[str]:
        """Every caption that the templates make of a row."""
        return self.source.captions(self.pixels.rows[row])

    def sides(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        """The shorter side of the pictures of `rows` in their files, in pixels."""
        return [min(size_of(self.source.contents(self.pixels.rows[row]))) for row in rows]


@dataclass(frozen=True)
class Joined:
    """The rows of a new set, 0 to N - 1, followed by those of a general one to replay, N to N + M - 1.

    Equal group names may mean different things in the two sets, so no group holds rows of both.
    """

    new: Captioned
    replay: Captioned

    def __len__(self) -> int:
        return len(self.new) + len(self.replay)

    @cached_property
    def groups(self) -> np.ndarray:
        """The groups of all rows, (N + M,) int64."""
        return np.concatenate([self.new.groups, self.replay.groups + self.new.groups.max() + 1])

    def images(self, rows: np.ndarray) -> Tensor:
        """The pictures of `rows`, (B, 3, S, S) uint8."""
        replayed = rows >= len(self.new)
        new, replay = self.new.images(rows[~replayed]), self.replay.images(rows[replayed] - len(self.new))
        images = torch.empty((len(rows), *new.shape[1:]), dtype=new.dtype)
        images[torch.from_numpy(~replayed)], images[torch.from_numpy(replayed)] = new, replay
        return images

    def captions(self, row: int) -> list[str]:
        """Every caption that the templates of its set make of a row."""
        return self.new.captions(row) if row < len(self.new) else self.replay.captions(row - len(self.new))


def load_captioned(source: CaptionedImages, size: int, cache: Path, weight: str | None = None) -> Captioned:
    """Decode the pictures of `source` once into `cache`, number their groups, and read their weights; see
    `Captioned.weights`."""
    pixels = decode_once(source, size, cache)
    names = [source.group(row) for row in pixels.rows]
    _, groups = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    data = Captioned(source, pixels, groups.astype(np.int64), weight)
    _ = data.weights  # a fault there is told now, not once the networks are built
    return data


def _weights(source: CaptionedImages, rows: Sequence[int], column: str) -> np.ndarray:
    if column not in (there := source.schema.names):
        raise DataError(f"{source.origin}: the weight needs the column {column}; there are {', '.join(there)}")
    weights = np.empty(len(rows))
    for place, row in enumerate(rows):
        cell = source.cell(row, column)
        try:
            weights[place] = float(cell)
        except (TypeError, ValueError):
            weights[place] = np.nan
        if not 0 <= weights[place] < np.inf:
            raise DataError(f"{source.origin}: a weight in the column {column} is {cell!r}; give a number, 0 or more")
    if not weights.any():
        raise DataError(f"{source.origin}: all weights in the column {column} are 0, so no row would be seen")
    return weights


class HasCaptions(Protocol):
    """What `CaptionTokens` reads: a number of rows, each with captions."""

    def __len__(self) -> int: ...

    def captions(self, row: int) -> list[str]:
        """The captions of a row."""
        ...


class CaptionTokens:
    """Token ids of every caption of every row, so that drawing one of a row's captions is a look-up."""

    def __init__(self, data: HasCaptions, tokenizer: Tokenizer):
        texts = [data.captions(row) for row in range(len(data))]
        counts = np.array([len(captions) for captions in texts])
        self.first = np.concatenate([[0], counts.cumsum()[:-1]])
        self.counts = counts
        distinct = list(dict.fromkeys(text for captions in texts for text in captions))
        number = {text: index for index, text in enumerate(distinct)}
        self.index = np.array([number[text] for captions in texts for text in captions])
        self.ids = tokenizer(distinct, on_long="truncate").to(torch.int32)  # (distinct, T)

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """One caption of each row, drawn uniformly: (B, T) int64."""
        picks = self.first[rows] + (rng.random(len(rows)) * self.counts[rows]).astype(np.int64)
        return self.ids[torch.from_numpy(self.index[picks])].long()
