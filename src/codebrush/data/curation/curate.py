"""A source of captioned pictures in; the rows of it that are worth training on, as shards with a report, out.

Pictures are read twice: once to be measured, a chunk at a time, and once to be copied. Between the two only the numbers
of `Measures` are in memory, `BYTES_PER_ROW` for each row, and the counts of phrases; captions stay on disk.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from codebrush.data.curation.caption_rules import CaptionRules, normalised
from codebrush.data.curation.near_duplicates import COPY_CELLS, MAX_DISTANCE, Fingerprint, NearIndex, fingerprint
from codebrush.data.curation.phrases import Phrases, check_shares, split_of, uniform
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.data.sources.shard_writer import KINDS, ShardWriter
from codebrush.errors import DataError, ImageError, UsageError
from codebrush.files import atomic_folder
from codebrush.progress import Progress

CHUNK = 256  # rows measured at once; of their pictures only small copies are held, for the scores
REPLACED = ("image", "__key__", "txt", "json")  # columns whose names mean something else in a shard
KEPT = 0
REASONS = (  # in the order in which rows are judged; a row's place here is its `Measures.reason`
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
    """How well pictures fit their captions; see `clip_scorer.ClipScorer`."""

    def fitted(self, image: Image.Image) -> Image.Image:
        """A small picture to score instead of `image`."""
        ...

    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> Sequence[float]:
        """For each `fitted` picture the best cosine of its captions, -1 to 1."""
        ...


@dataclass(frozen=True)
class CurationOptions:
    """What is kept and how it is written.

    `min_side` in pixels and `max_aspect` (long side over short) bound the pictures, `rules` the captions. `near` is the
    most bits of 64 in which a near duplicate may differ; None keeps them. Either `min_score` or the best share
    `keep_top` (0 to 1) asks for scores. `cap` bounds each of `phrases` (None: the captions' own words), `only_phrases`
    drops rows without any. `shares` are those of train, val and test, split by the source's group column with
    `by_group`, else, and where that is empty, by caption.
    """

    min_side: int = 1
    max_aspect: float | None = None
    rules: CaptionRules = field(default_factory=CaptionRules)
    near: int | None = None
    min_score: float | None = None
    keep_top: float | None = None
    cap: int | None = None
    phrases: tuple[str, ...] | None = None
    only_phrases: bool = False
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05)
    by_group: bool = False
    kind: str = "tar"
    shard_rows: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_shares(self.shares)
        for wrong, what in (
            (self.max_aspect is not None and self.max_aspect < 1, "--max-aspect is long side over short: 1 or more"),
            (self.near not in (None, *range(MAX_DISTANCE + 1)), f"--near is 0 to {MAX_DISTANCE} bits, or -1"),
            (self.min_score is not None and self.keep_top is not None, "give --min-score or --keep-top, not both"),
            (self.keep_top is not None and not 0 < self.keep_top <= 1, "--keep-top is a share above 0 and up to 1"),
            (self.cap is not None and self.cap < 1, "--cap must be 1 or more"),
            (self.phrases and not (self.cap or self.only_phrases), "--phrases needs --cap or --only-phrases"),
            (self.only_phrases and not self.phrases, "--only-phrases needs --phrases"),
            (self.kind not in KINDS, f"--format is one of {', '.join(KINDS)}"),
            (self.shard_rows < 1, "--shard-rows must be 1 or more"),
        ):
            if wrong:
                raise UsageError(what)

    @property
    def needs_scores(self) -> bool:
        """Whether rows are judged by their score."""
        return self.min_score is not None or self.keep_top is not None


class Measures:
    """What is known of N rows: arrays of N each."""

    def __init__(self, rows: int) -> None:
        self.reason = np.zeros(rows, np.uint8)
        self.score = np.full(rows, np.nan, np.float32)
        self.pixels = np.zeros(rows, np.uint64)
        self.shape = np.zeros(rows, np.uint64)
        self.copy = np.zeros((rows, COPY_CELLS), np.uint8)  # (N, 96)
        self.twin = np.full(rows, -1, np.int32)  # for a duplicate, the row that stays instead

    def __len__(self) -> int:
        return len(self.reason)

    @property
    def kept(self) -> np.ndarray:
        """The numbers of the rows that stay, in order."""
        return np.flatnonzero(self.reason == KEPT)

    def drop(self, rows: np.ndarray | int, reason: str) -> None:
        """Let rows go."""
        self.reason[rows] = REASONS.index(reason)

    def counts(self) -> dict[str, int]:
        """How many rows there are of each reason that occurs."""
        numbers = np.bincount(self.reason, minlength=len(REASONS)).tolist()
        return {name: number for name, number in zip(REASONS, numbers, strict=True) if number}


BYTES_PER_ROW = sum(each.nbytes for each in vars(Measures(1)).values())  # beside 4 for each band of the near index


def curate(
    source: CaptionedImages,
    out: str | Path,
    options: CurationOptions,
    scorer: Scorer | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write what is worth keeping of `source` to the new folder `out` and return the report that lies there too.

    `out` appears whole or not at all, with train-00000.tar and so on (or .parquet), report.json, report.md, kept.png,
    dropped.png, and in dropped.jsonl each row that is not there, with the reason. `progress` is called with (rows,
    twice the rows in all). Raises DataError where `out` is taken or nothing is left, CodebrushError where it cannot be
    written.
    """
    from codebrush.data.curation.report import write_report

    if options.needs_scores and scorer is None:
        raise UsageError("a threshold of the score needs a scorer")
    start = time.perf_counter()
    tell = progress or (lambda done, total: None)
    with atomic_folder(out) as part:
        measures = measure(source, options, scorer, lambda done: tell(done, 2 * len(source)))
        measured = time.perf_counter()
        phrases = decide(source, measures, options)
        decided = time.perf_counter()
        with ShardWriter(part, options.kind, options.shard_rows, output_schema(source)) as writer:
            _copy(source, measures, options, writer, lambda done: tell(len(source) + done, 2 * len(source)))
        if not measures.kept.size:
            left = ", ".join(f"{number} {reason}" for reason, number in measures.counts().items())
            raise DataError(f"{source.origin}: curation leaves none of {len(source)} rows ({left}); loosen the rules")
        end = time.perf_counter()
        seconds = {"measure": measured - start, "decide": decided - measured, "write": end - decided}
        return write_report(part, Path(out), source, measures, options, writer, phrases, seconds)


def measure(
    source: CaptionedImages, options: CurationOptions, scorer: Scorer | None, told: Callable[[int], None]
) -> Measures:
    """The first pass: decode every picture, judge it and its captions by themselves, fingerprint and score it."""
    measures = Measures(len(source))
    scoring = scorer if options.needs_scores else None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), CHUNK):
            rows = range(start, min(start + CHUNK, len(source)))
            found = pool.map(lambda row: _measure_row(source, row, options, scoring), rows)
            scored: list[tuple[int, Image.Image]] = []
            for row, (reason, marks, small) in zip(rows, found, strict=True):
                measures.reason[row] = REASONS.index(reason)
                if marks is not None:
                    measures.pixels[row], measures.shape[row] = marks.pixels, marks.shape
                    measures.copy[row] = marks.copy
                if small is not None:
                    scored.append((row, small))
            if scoring is not None and scored:
                captions = [good_captions(source, row, options.rules) for row, _ in scored]
                numbers = [row for row, _ in scored]
                measures.score[numbers] = scoring([small for _, small in scored], captions)
            told(rows.stop)
    return measures


def _measure_row(
    source: CaptionedImages, row: int, options: CurationOptions, scorer: Scorer | None
) -> tuple[str, Fingerprint | None, Image.Image | None]:
    """A row's reason (or kept), fingerprint, and small copy to score where that is asked for."""
    faults = [options.rules.fault(caption) for caption in source.captions(row)]
    try:
        image = source.image(row)
    except ImageError:
        return "unreadable", None, None
    if min(image.size) < options.min_side:
        return "too small", None, None
    if options.max_aspect is not None and max(image.size) > options.max_aspect * min(image.size):
        return "too elongated", None, None
    if None not in faults:
        return str(faults[0]) if faults else "no caption", None, None
    return "kept", fingerprint(image), None if scorer is None else scorer.fitted(image)


def good_captions(source: CaptionedImages, row: int, rules: CaptionRules) -> list[str]:
    """A row's captions that are in order, each once."""
    return [caption for caption in dict.fromkeys(source.captions(row)) if rules.fault(caption) is None]


def decide(source: CaptionedImages, measures: Measures, options: CurationOptions) -> Phrases | None:
    """What rows mean to each other: scores, duplicates and balance, in this order. Returns the phrases counted.

    Of duplicates the row with the best score stays, without scores the first. Phrases are counted in the rows that are
    left by then.
    """
    _by_score(measures, options)
    _drop_exact(measures)
    if options.near is not None:
        _drop_near(measures, options.near)
    if options.cap is None and not options.only_phrases:
        return None
    phrases = Phrases(options.phrases)
    for row in measures.kept.tolist():
        phrases.count(good_captions(source, row, options.rules))
    for row in measures.kept.tolist():
        rarest = phrases.rarest(good_captions(source, row, options.rules))
        if rarest is None and options.only_phrases:
            measures.drop(row, "no phrase")
        # By the picture and not by a stream of draws or the row's place: other rows do not change a row's luck.
        chance = 1.0 if rarest is None or options.cap is None else options.cap / rarest[1]
        if uniform(f"{options.seed} {measures.pixels[row]}") >= chance:
            measures.drop(row, "over the cap")
    return phrases


def _by_score(measures: Measures, options: CurationOptions) -> None:
    kept = measures.kept
    if options.min_score is not None:
        measures.drop(kept[~(measures.score[kept] >= options.min_score)], "low score")
    elif options.keep_top is not None:
        wanted = round(options.keep_top * len(kept))
        measures.drop(_best_first(measures, kept)[wanted:], "low score")


def _best_first(measures: Measures, rows: np.ndarray) -> np.ndarray:
    """`rows` by falling score; those of equal score, or none, in order."""
    return rows[np.argsort(-measures.score[rows], kind="stable")]


def _drop_exact(measures: Measures) -> None:
    order = _best_first(measures, measures.kept)
    _, first, group = np.unique(measures.pixels[order], return_index=True, return_inverse=True)
    stays = order[first[group]]  # for each row the best one of the same pixels
    twins = order[stays != order]
    measures.twin[twins] = stays[stays != order]
    measures.drop(twins, "exact duplicate")


def _drop_near(measures: Measures, distance: int) -> None:
    """Each row is compared with those that stay, so that a chain of small changes does not swallow its far end."""
    index = NearIndex(measures.shape, measures.copy, distance)
    for row in _best_first(measures, measures.kept).tolist():
        twin = index.find(row)
        if twin is None:
            index.add(row)
        else:
            measures.twin[row] = twin
            measures.drop(row, "near duplicate")


def concept_of(source: CaptionedImages, row: int, captions: Sequence[str], options: CurationOptions) -> str:
    """What a row counts as in the split: its cell of the group column as it is, or the words of its first caption."""
    return (source.group_cell(row) if options.by_group else "") or normalised(captions[0])


def output_schema(source: CaptionedImages) -> Any:
    """The columns of the shards, without the picture, as an Arrow schema."""
    import pyarrow as pa

    own = {"captions": pa.list_(pa.string()), "split": pa.string(), "clip_score": pa.float32()}
    fields = [kind for kind in source.schema if kind.name not in (*own, *REPLACED)]
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in own.items())])


def _copy(
    source: CaptionedImages,
    measures: Measures,
    options: CurationOptions,
    writer: ShardWriter,
    told: Callable[[int], None],
) -> None:
    """The second pass: the bytes of the pictures that stay, with their captions, into shards."""
    for row in _counted(measures.kept, len(measures), told):
        captions = good_captions(source, row, options.rules)
        split = split_of(concept_of(source, row, captions, options), options.shares)
        columns = {name: cell for name, cell in source.row(row).items() if name not in REPLACED}
        score = float(measures.score[row])
        columns |= {"captions": captions, "split": split, "clip_score": None if np.isnan(score) else round(score, 4)}
        try:
            writer.add(split, source.contents(row), captions, columns)
        except ImageError:  # it could be read a while ago
            measures.drop(row, "unreadable")


def _counted(rows: np.ndarray, total: int, told: Callable[[int], None]) -> Iterator[int]:
    for done, row in enumerate(rows.tolist()):
        if done % CHUNK == 0:
            told(row)
        yield row
    told(total)
