"""Embeds the pictures of sources into a Parquet file: a row for each, in their order, with its unit vector.

A picture has the embedding that it would have in a database; nothing is looked up in one.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from codebrush.data.picture_fitting import Fit, embed_views
from codebrush.data.sources.unread import Unread
from codebrush.errors import DataError, ImageError
from codebrush.files import atomic_file, write_errors
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.search.database import Embedder, metadata_of
from codebrush.search.examining import THREADS, read_views
from codebrush.search.indexing import BATCH
from codebrush.search.pictures import Candidate, Source

if TYPE_CHECKING:
    import pyarrow as pa


class EmbedBatch(NamedTuple):
    """Pictures of one source that are embedded together."""

    candidates: list[Candidate]
    unread: Unread


@dataclass
class Embedded:
    """Rows with pictures that were embedded, those that could not be, and of which frame animations were embedded."""

    rows: "pa.Table"
    skipped: list[dict[str, str]] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)


@dataclass
class EmbedReport:
    """How many rows were written, and the pictures that could not be embedded, as in `IndexReport`."""

    rows: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)


# Embeds batches and yields what came of them, in their order.
EmbedEngine = Callable[[CLIP, Fit | None, Iterator[EmbedBatch]], Generator[Embedded, None, None]]


def embed_pictures(
    sources: Sequence[Source],
    clip: CLIP,
    embedder: Embedder,
    out: Path,
    progress: Progress | None = None,
    engine: EmbedEngine | None = None,
) -> EmbedReport:
    """Write the embeddings of all pictures to the Parquet file `out`, which appears complete or not at all.

    Its columns are path, source, caption, width, height and embedding; `embedder` is in its metadata. Pictures that
    cannot be read are skipped and listed in the report. `progress` counts pictures. `engine` does the work; None is
    this process.

    Raises:
        DataError: if no picture could be read, or one of a source that was opened with `strict`.
        CodebrushError: if the file cannot be written.
    """
    import pyarrow.parquet as pq

    total, report = sum(source.count for source in sources), EmbedReport()
    parts = (engine or _in_this_process)(clip, embedder.fit, _batches(sources))
    schema = _schema(clip.embed_dim).with_metadata(metadata_of(embedder))
    with write_errors(out, "file"), closing(parts), atomic_file(out) as file:
        with pq.ParquetWriter(file, schema) as writer:
            for part in parts:
                writer.write_table(part.rows.replace_schema_metadata(schema.metadata))
                report.rows += len(part.rows)
                report.skipped += part.skipped
                report.frames |= part.frames
                if progress is not None:
                    progress(report.rows + len(report.skipped), total)
        if not report.rows:
            raise DataError(f"nothing was embedded: {_none(report.skipped)}")
    return report


def embed_batch(clip: CLIP, fit: Fit | None, batch: EmbedBatch, threads: ThreadPoolExecutor) -> Embedded:
    """Read and embed the pictures of a batch."""
    import pyarrow as pa

    done = Embedded(_schema(clip.embed_dim).empty_table())
    read: list[tuple[Candidate, tuple[int, int]]] = []
    views: list[Tensor] = []
    results = threads.map(lambda each: _read(clip, fit, each), batch.candidates)
    for candidate, found in zip(batch.candidates, results, strict=True):
        if isinstance(found, ImageError):
            _skip(done, batch.unread, candidate.path, str(found).removeprefix(f"{candidate.path}: "))
            continue
        size, frame, seen = found
        if frame is not None:
            done.frames[candidate.path] = frame
        read.append((candidate, size))
        views.append(seen)
    vectors = embed_views(clip, views).cpu().numpy()  # (B, E)
    good = [bool(np.isfinite(row).all()) for row in vectors]
    for (candidate, _), is_good in zip(read, good, strict=True):
        if not is_good:
            done.frames.pop(candidate.path, None)
            _skip(done, batch.unread, candidate.path, "its embedding is not finite (NaN)")
    kept = [each for each, is_good in zip(read, good, strict=True) if is_good]
    flat = pa.array(np.ascontiguousarray(vectors[good], np.float32).reshape(-1))  # (B * E,)
    columns = [
        [candidate.path for candidate, _ in kept],
        [candidate.source for candidate, _ in kept],
        [candidate.caption for candidate, _ in kept],
        [width for _, (width, _) in kept],
        [height for _, (_, height) in kept],
        pa.FixedSizeListArray.from_arrays(flat, clip.embed_dim),
    ]
    done.rows = pa.table(columns, schema=done.rows.schema)
    return done


def _in_this_process(clip: CLIP, fit: Fit | None, batches: Iterator[EmbedBatch]) -> Generator[Embedded, None, None]:
    with ThreadPoolExecutor(THREADS) as threads:
        for batch in batches:
            yield embed_batch(clip, fit, batch, threads)


def _batches(sources: Sequence[Source]) -> Iterator[EmbedBatch]:
    for source in sources:
        yield from (EmbedBatch(batch, source.unread) for batch in source.batches(BATCH))


def _read(clip: CLIP, fit: Fit | None, candidate: Candidate) -> tuple[tuple[int, int], int | None, Tensor] | ImageError:
    try:
        picture, views = read_views(clip, candidate.contents(), fit)
    except ImageError as error:
        return error
    return picture.size, picture.frame, views


def _skip(done: Embedded, unread: Unread, path: str, reason: str) -> None:
    unread.stop_if_strict(path, reason)
    done.skipped.append({"path": path, "reason": reason})


def _schema(embed_dim: int) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string()),
            pa.field("source", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("embedding", pa.list_(pa.float32(), embed_dim)),
        ]
    )


def _none(skipped: Sequence[Any]) -> str:
    return f"none of the {len(skipped):,} pictures could be read" if skipped else "there are no pictures"
