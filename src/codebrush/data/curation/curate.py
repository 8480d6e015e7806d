"""Keeps the rows of a source that are worth training on, and writes them as shards with a report.

Pictures are read twice: once to measure them (`measures`) and once to copy them. In between only numbers are in memory,
and the counts of phrases; captions stay on disk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from codebrush.data.curation.caption_rules import normalised
from codebrush.data.curation.measures import CHUNK, Measures, Scorer, good_captions, measure
from codebrush.data.curation.near_duplicates import (
    ENOUGH,
    JUDGED_SIDE,
    NOTHING,
    NearIndex,
    detail,
    same_detail,
    same_tint,
    tint,
)
from codebrush.data.curation.options import CurationOptions
from codebrush.data.curation.phrases import Phrases, split_of, uniform
from codebrush.data.curation.report import write_report
from codebrush.data.decoding.images import read_picture
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.data.sources.shard_writer import ShardWriter
from codebrush.errors import DataError, ImageError, UsageError
from codebrush.files import atomic_folder
from codebrush.progress import Progress

DETAILS = 4_096  # pictures whose details are kept for comparisons, 4 KiB each
Measure = Callable[[CaptionedImages, CurationOptions, Scorer | None, Callable[[int], None]], Measures]
REPLACED = ("image", "__key__", "txt", "json")  # columns whose names mean something else in a shard


def curate(
    source: CaptionedImages,
    out: str | Path,
    options: CurationOptions,
    scorer: Scorer | None = None,
    progress: Progress | None = None,
    engine: Measure | None = None,
) -> dict[str, Any]:
    """Write the rows of `source` that are worth keeping to the new folder `out` and return the report.

    `out` appears complete or not at all. It holds train-00000.tar and so on (or .parquet), report.json, report.md,
    sheets of examples (kept.png, dropped.png), and dropped.jsonl with each row that was dropped and the reason. Each
    row counts twice in `progress`, because it is read twice. `engine` measures the rows; None is
    this process.

    Raises:
        UsageError: if the options ask for scores and there is no scorer.
        DataError: if `out` exists or no row is kept.
        CodebrushError: if `out` cannot be written.
    """
    if options.needs_scores and scorer is None:
        raise UsageError("min_score and keep_top need a scorer")
    start = time.perf_counter()
    progress = progress or (lambda done, total: None)
    with atomic_folder(out) as part:
        measures = (engine or measure)(source, options, scorer, lambda done: progress(done, 2 * len(source)))
        measured = time.perf_counter()
        phrases = decide(source, measures, options)
        decided = time.perf_counter()
        with ShardWriter(part, options.kind, options.shard_rows, output_schema(source)) as writer:
            _copy(source, measures, options, writer, lambda done: progress(len(source) + done, 2 * len(source)))
        if not measures.kept.size:
            left = ", ".join(f"{number} {reason}" for reason, number in measures.counts().items())
            raise DataError(f"{source.origin}: curation leaves none of {len(source)} rows ({left}); loosen the rules")
        end = time.perf_counter()
        seconds = {"measure": measured - start, "decide": decided - measured, "write": end - decided}
        return write_report(part, Path(out), source, measures, options, writer, phrases, seconds)


def decide(source: CaptionedImages, measures: Measures, options: CurationOptions) -> Phrases | None:
    """Drop rows by comparing them: low scores, then duplicates, then rows of common phrases. Returns the phrases.

    Of duplicates the row with the best score is kept, without scores the one of the best `quality`, of equal ones the
    first. Pictures of one colour are never duplicates. Phrases are counted in the rows that are left by then.
    """
    _by_score(measures, options)
    _drop_exact(measures)
    if options.near is not None:
        _drop_near(source, measures, options.near)
    if options.cap is None and not options.only_phrases:
        return None
    phrases = Phrases(options.phrases)
    for row in measures.kept.tolist():
        phrases.count(good_captions(source, row, options.rules))
    for row in measures.kept.tolist():
        rarest = phrases.rarest(good_captions(source, row, options.rules))
        if rarest is None and options.only_phrases:
            measures.drop(row, "no phrase")
        # Drawn from the picture, not from a random stream: a row's luck does not depend on the other rows.
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
    """`rows` by falling score; those of equal score, or without one, in order."""
    return rows[np.argsort(-measures.score[rows], kind="stable")]


def _best_copy_first(measures: Measures, least: int) -> np.ndarray:
    """The kept rows whose pictures show at least `least`: by falling score, then quality, then in order."""
    rows = measures.kept[measures.shows[measures.kept] >= least]
    return rows[np.lexsort((-measures.quality[rows], -measures.score[rows]))]


def _drop_exact(measures: Measures) -> None:
    order = _best_copy_first(measures, NOTHING + 1)
    exact = measures.pixels[order] ^ measures.alpha[order]  # as `Fingerprint.exact`
    _, first, group = np.unique(exact, return_index=True, return_inverse=True)
    stays = order[first[group]]  # for each row the best one with the same pixels
    twins = order[stays != order]
    measures.twin[twins] = stays[stays != order]
    measures.drop(twins, "exact duplicate")


def _drop_near(source: CaptionedImages, measures: Measures, distance: int) -> None:
    """Rows are compared with kept ones only, so that a chain of small changes does not swallow its far end.

    Pictures whose fingerprints are alike are read once more for their details, which would take much memory for all.
    """

    @lru_cache(DETAILS)
    def parts_of(row: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        try:
            image = read_picture(source.contents(row), keep_mode=True, wanted=JUDGED_SIDE).image
        except ImageError:  # it could be read before: whoever copies it reports it
            return None, None
        return detail(image), tint(image)

    def is_same(one: int, other: int) -> bool:
        (detail_of_one, tint_of_one), (detail_of_other, tint_of_other) = parts_of(one), parts_of(other)
        return same_detail(detail_of_one, detail_of_other) and same_tint(tint_of_one, tint_of_other)

    index = NearIndex(measures.shape, measures.copy, distance)
    for row in _best_copy_first(measures, ENOUGH).tolist():
        twin = index.find(row, partial(is_same, row))
        if twin is None:
            index.add(row)
        else:
            measures.twin[row] = twin
            measures.drop(row, "near duplicate")


def concept_of(source: CaptionedImages, row: int, captions: Sequence[str], options: CurationOptions) -> str:
    """What decides the split of a row: its cell in the group column, or the words of its first caption."""
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
    on_progress: Callable[[int], None],
) -> None:
    """Copy the files of the kept pictures, with their captions, into shards."""
    for row in _counted(measures.kept, len(measures), on_progress):
        captions = good_captions(source, row, options.rules)
        split = split_of(concept_of(source, row, captions, options), options.shares)
        columns = {name: cell for name, cell in source.row(row).items() if name not in REPLACED}
        score = float(measures.score[row])
        columns |= {"captions": captions, "split": split, "clip_score": None if np.isnan(score) else round(score, 4)}
        try:
            writer.add(split, source.contents(row), captions, columns)
        except ImageError:  # it was readable in the first pass
            measures.drop(row, "unreadable")


def _counted(rows: np.ndarray, total: int, on_progress: Callable[[int], None]) -> Iterator[int]:
    for done, row in enumerate(rows.tolist()):
        if done % CHUNK == 0:
            on_progress(row)
        yield row
    on_progress(total)
