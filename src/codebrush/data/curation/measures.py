"""Measures every row of a source: is it readable and within the rules, its fingerprint, its CLIP score.

Only the numbers of `Measures` stay in memory, `BYTES_PER_ROW` for each row.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from codebrush.data.curation.caption_rules import CaptionRules
from codebrush.data.curation.near_duplicates import (
    COPY_CELLS,
    ENOUGH,
    JUDGED_SIDE,
    NOTHING,
    Fingerprint,
    fingerprint,
    quality,
)
from codebrush.data.curation.options import CurationOptions
from codebrush.data.decoding.compression import is_lossy
from codebrush.data.decoding.images import read_picture
from codebrush.data.decoding.transparency import flattened, opacity
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.errors import ImageError

CHUNK = 256  # rows measured at once; of their pictures only thumbnails are held, for the scores
KEPT = 0
REASONS = (  # in the order in which rows are checked; `Measures.reason` holds an index into it
    "kept",
    "unreadable",
    "too small",
    "too elongated",
    "no caption",
    "caption too short",
    "caption too long",
    "caption in another script",
    "low score",
    "exact duplicate",
    "near duplicate",
    "no phrase",
    "over the cap",
)


class Scorer(Protocol):
    """Scores how well pictures fit their captions, like `clip_scorer.ClipScorer`."""

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """A small picture that is scored instead of `image`."""
        ...

    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> Sequence[float]:
        """For each of the thumbnails the highest cosine with one of its captions, -1 to 1."""
        ...


class Measures:
    """What is known of N rows, as arrays of N."""

    def __init__(self, rows: int) -> None:
        self.reason = np.zeros(rows, np.uint8)  # index into REASONS
        self.score = np.full(rows, np.nan, np.float32)  # cosine; NaN without one
        self.pixels = np.zeros(rows, np.uint64)  # these five: see `near_duplicates.Fingerprint`
        self.alpha = np.zeros(rows, np.uint64)
        self.shape = np.zeros(rows, np.uint64)
        self.copy = np.zeros((rows, COPY_CELLS), np.uint8)  # (N, 112)
        self.shows = np.full(rows, ENOUGH, np.uint8)
        self.quality = np.zeros(rows, np.int64)  # see `near_duplicates.quality`
        self.frame = np.full(rows, -1, np.int32)  # that was read of an animation; -1 for a single picture
        self.twin = np.full(rows, -1, np.int32)  # for a duplicate, the row that is kept instead

    def __len__(self) -> int:
        return len(self.reason)

    @property
    def kept(self) -> np.ndarray:
        """The numbers of the rows that are kept, in order."""
        return np.flatnonzero(self.reason == KEPT)

    @property
    def plain(self) -> int:
        """How many rows of those that are kept are of one colour, so that they are not compared with others."""
        return int(np.count_nonzero(self.shows[self.kept] == NOTHING))

    def put(self, start: int, part: "Measures") -> None:
        """Take over what is known of the rows from `start` on."""
        for name, values in vars(part).items():
            getattr(self, name)[start : start + len(part)] = values

    def drop(self, rows: np.ndarray | int, reason: str) -> None:
        """Drop rows for one of `REASONS`."""
        self.reason[rows] = REASONS.index(reason)

    def counts(self) -> dict[str, int]:
        """How many rows there are of each reason that occurs."""
        numbers = np.bincount(self.reason, minlength=len(REASONS)).tolist()
        return {name: number for name, number in zip(REASONS, numbers, strict=True) if number}


BYTES_PER_ROW = sum(each.nbytes for each in vars(Measures(1)).values())  # besides 4 for each band of the near index


def measure(
    source: CaptionedImages, options: CurationOptions, scorer: Scorer | None, on_progress: Callable[[int], None]
) -> Measures:
    """Decode every picture, check it and its captions one by one, fingerprint it, and score it if `options` ask for it.

    `on_progress` is called with the number of rows done.
    """
    measures = Measures(len(source))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in chunks(source):
            measures.put(rows.start, measure_rows(source, rows, options, scorer, pool))
            on_progress(rows.stop)
    return measures


def chunks(source: CaptionedImages) -> Iterator[range]:
    """The numbers of the rows that are measured at once."""
    for start in range(0, len(source), CHUNK):
        yield range(start, min(start + CHUNK, len(source)))


def measure_rows(
    source: CaptionedImages, rows: range, options: CurationOptions, scorer: Scorer | None, pool: ThreadPoolExecutor
) -> Measures:
    """What `measure` finds out about some of the rows."""
    measures = Measures(len(rows))
    scoring = scorer if options.needs_scores else None
    found = pool.map(lambda row: _measure_row(source, row, options, scoring), rows)
    scored: list[tuple[int, Image.Image]] = []
    for number, measured in enumerate(found):
        if isinstance(measured, str):
            measures.drop(number, measured)
            continue
        measures.quality[number] = measured.quality
        measures.frame[number] = -1 if measured.frame is None else measured.frame
        for name in ("pixels", "alpha", "shape", "copy", "shows"):
            getattr(measures, name)[number] = getattr(measured.marks, name)
        if measured.thumbnail is not None:
            scored.append((number, measured.thumbnail))
    if scoring is not None and scored:
        captions = [good_captions(source, rows[number], options.rules) for number, _ in scored]
        measures.score[[number for number, _ in scored]] = scoring([small for _, small in scored], captions)
    return measures


class _Measured(NamedTuple):
    marks: Fingerprint
    quality: int
    frame: int | None
    thumbnail: Image.Image | None  # with a scorer


def _measure_row(source: CaptionedImages, row: int, options: CurationOptions, scorer: Scorer | None) -> _Measured | str:
    """What is measured of a row, or the reason why it is dropped."""
    faults = [options.rules.fault(caption) for caption in source.captions(row)]
    try:
        data = source.contents(row)
        picture = read_picture(data, keep_mode=True, wanted=JUDGED_SIDE)
    except ImageError as error:
        source.unread.stop_if_strict(source.name(row), str(error))
        return "unreadable"
    if min(picture.size) < options.min_side:
        return "too small"
    if options.max_aspect is not None and max(picture.size) > options.max_aspect * min(picture.size):
        return "too elongated"
    if None not in faults:
        return str(faults[0]) if faults else "no caption"
    image = picture.image
    has_alpha = opacity(image) is not None
    value = quality(source.name(row), picture.size, picture.frame is not None, is_lossy(data), has_alpha)
    small = None if scorer is None else scorer.thumbnail(flattened(image))
    return _Measured(fingerprint(image), value, picture.frame, small)


def good_captions(source: CaptionedImages, row: int, rules: CaptionRules) -> list[str]:
    """A row's captions that keep the rules, each once."""
    return [caption for caption in dict.fromkeys(source.captions(row)) if rules.fault(caption) is None]
