"""Measures how similar two pictures are, and finds near-duplicates among many. Nothing is deleted.

Two measures must agree: CLIP's cosine, which alone would match pictures of the same kind of thing, and the judgement by
fingerprints that curation uses too (`data.curation.near_duplicates`).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codebrush.data.curation.near_duplicates import (
    BITS,
    ENOUGH,
    JUDGED_SIDE,
    MAX_DISTANCE,
    NOTHING,
    Fingerprint,
    alike_copies,
    detail,
    fingerprint,
    quality,
    same_detail,
    same_tint,
    tint,
)
from codebrush.data.decoding.compression import is_lossy
from codebrush.data.decoding.images import read_picture
from codebrush.data.decoding.transparency import opacity
from codebrush.data.picture_fitting import embed_views, views_for
from codebrush.data.sources.file_names import existing
from codebrush.errors import ImageError, UsageError
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.search.pictures import Candidate, Source

BATCH = 256
THREADS = 4
BLOCK = 2_048  # pictures compared with as many others at once
COPIES = 1 << 16  # pairs of tiny copies compared at once
COSINE = 0.9  # what the fingerprints call copies hardly needs more; see docs/log.md
DISTANCE = 8  # bits of 64
SLACK = 1e-6  # rounding error of a cosine in float32


@dataclass(frozen=True)
class Features:
    """What is kept of a picture beside its embedding."""

    path: str
    quality: int  # see `near_duplicates.quality`
    size: int  # in bytes
    marks: Fingerprint
    detail: np.ndarray | None = None  # see `near_duplicates.detail`
    tint: np.ndarray | None = None  # see `near_duplicates.tint`
    frame: int | None = None  # by which an animation or a file of several pages is judged, from 0


@dataclass(frozen=True)
class Similarity:
    """`cosine` is that of CLIP's embeddings, -1 to 1; `distance` the number of differing hash bits, 0 to 64."""

    cosine: float
    distance: int
    identical: bool  # in every pixel and its transparency; judged at a reduced size above 16 megapixels


@dataclass(frozen=True)
class Comparison(Similarity):
    """The similarity of two files, whether they are near-duplicates, and the frame by which each was judged.

    A frame is None if the file holds a single picture.
    """

    near_identical: bool
    frames: tuple[int | None, int | None]


@dataclass(frozen=True)
class Cluster:
    """Near-duplicates: the picture to keep, and the others with their similarity to it."""

    representative: str
    duplicates: list[tuple[str, Similarity]]


@dataclass(frozen=True)
class DuplicateReport:
    """`pictures` is how many could be read; `skipped` lists the others, each with the reason.

    `plain` are the pictures of one colour, which are not compared. `frames` has the number of the frame, from 0, by
    which each animation and file of several pages was judged.
    """

    pictures: int
    clusters: list[Cluster]
    skipped: list[dict[str, str]]
    plain: list[str]
    frames: dict[str, int]


def compare(clip: CLIP, one: str, other: str) -> Comparison:
    """How similar two picture files are. Raises ImageError if one cannot be read."""
    (a, b), pixels = zip(*(_read(clip, Candidate(path, path, "", {})) for path in (one, other)), strict=True)
    alike = _similarity((a, b), embed_views(clip, pixels).cpu().numpy(), 0, 1)
    near = alike.identical or (alike.cosine >= COSINE - SLACK and _match(a, b, DISTANCE))
    return Comparison(alike.cosine, alike.distance, alike.identical, near, (a.frame, b.frame))


def find_duplicates(
    sources: Sequence[Source],
    clip: CLIP,
    cosine: float = COSINE,
    distance: int = DISTANCE,
    progress: Progress | None = None,
) -> DuplicateReport:
    """Cluster the near-duplicates among the pictures of `sources`.

    A pair matches if its cosine is at least `cosine` (-1 to 1), at most `distance` (0 to 64) hash bits differ, and the
    tiny copies of the fingerprints, small areas such as lines of text, and the colours of parts are alike; above 15
    bits, which is looser than near-duplicates are, these are not compared. Pictures of one colour match none. The best
    picture is clustered with all that match it, then the best of the rest, and so on. Pictures that are only linked
    through others are not in one cluster, so that whoever deletes the duplicates keeps a match of each. Uses 4 E +
    5,300 bytes a picture.

    Raises:
        UsageError: if a threshold is out of range.
        DataError: if a picture of a source that was opened with `strict` cannot be read.
    """
    if not -1 <= cosine <= 1:
        raise UsageError(f"the least cosine is {cosine:g}; it must be between -1 and 1")
    if not 0 <= distance <= BITS:
        raise UsageError(f"the most bits that may differ are {distance}; it must be between 0 and {BITS}")
    skipped: list[dict[str, str]] = []
    features, embeddings = _read_all(sources, clip, skipped, progress)
    groups = _Groups(len(features))
    # Exact copies are joined first: the n^2 pairs among n of them need not be compared.
    first: dict[int, int] = {}
    for row, each in enumerate(features):
        if each.marks.shows != NOTHING:
            groups.join(row, first.setdefault(each.marks.exact, row))
    clear = [row for row in sorted(first.values()) if features[row].marks.shows == ENOUGH]
    rows = np.array(clear, dtype=np.int64)
    shapes = np.array([features[row].marks.shape for row in clear], dtype=np.uint64)
    copies = np.array([features[row].marks.copy for row in clear]) if distance <= MAX_DISTANCE else None
    for one, other in near_pairs(embeddings[rows], shapes, cosine, distance, copies):
        pair = int(rows[one]), int(rows[other])
        # Whether their details are the same decides only where no other pictures link them.
        if groups.root(pair[0]) != groups.root(pair[1]) and _match(features[pair[0]], features[pair[1]], distance):
            groups.join(*pair)
    clusters = [
        _cluster(features, embeddings, members)
        for group in groups.larger_than_one()
        for members in _split(features, embeddings, group, cosine, distance)
    ]
    clusters.sort(key=lambda each: each.representative)
    plain = [each.path for each in features if each.marks.shows == NOTHING]
    frames = {each.path: each.frame for each in features if each.frame is not None}
    return DuplicateReport(len(features), clusters, skipped, plain, frames)


def near_pairs(
    embeddings: np.ndarray, shapes: np.ndarray, cosine: float, distance: int, copies: np.ndarray | None = None
) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i, j), i < j, of unit vectors (N, E) with at least this cosine, whose 64-bit hashes (N,) uint64
    differ in at most `distance` bits, and whose tiny copies (N, 112) uint8 are alike if there are any. Works in blocks:
    memory does not grow with the number of pairs.
    """
    octets = np.ascontiguousarray(shapes, dtype=">u8").view(np.uint8).reshape(-1, 8)  # (N, 8)
    signs = np.unpackbits(octets, axis=1).astype(np.float32) * 2 - 1  # (N, 64)
    for top in range(0, len(embeddings), BLOCK):
        rows = slice(top, top + BLOCK)
        for left in range(top, len(embeddings), BLOCK):
            columns = slice(left, left + BLOCK)
            near = embeddings[rows] @ embeddings[columns].T >= cosine - SLACK  # (block, block)
            near &= signs[rows] @ signs[columns].T >= BITS - 2 * distance  # each differing bit subtracts two
            ones, others = np.nonzero(np.triu(near, 1) if left == top else near)
            ones, others = ones + top, others + left
            for start in range(0, len(ones), COPIES):
                some, with_some = ones[start : start + COPIES], others[start : start + COPIES]
                if copies is not None:
                    alike = alike_copies(copies[some], copies[with_some])
                    some, with_some = some[alike], with_some[alike]
                yield from zip(some.tolist(), with_some.tolist(), strict=True)


class _Groups:
    """Disjoint sets of rows (union-find, Tarjan 1975), each represented by its lowest row."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = self.parent[self.parent[row]]
            row = self.parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self.parent[high] = low

    def larger_than_one(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for row in range(len(self.parent)):
            members.setdefault(self.root(row), []).append(row)
        return [group for group in members.values() if len(group) > 1]


def _read_all(
    sources: Sequence[Source],
    clip: CLIP,
    skipped: list[dict[str, str]],
    progress: Progress | None,
) -> tuple[list[Features], np.ndarray]:
    """The features of the N readable pictures, each read once, and their embeddings (N, E)."""
    total, done = sum(source.count for source in sources), 0
    features: list[Features] = []
    parts: list[Tensor] = [torch.zeros(0, clip.embed_dim)]
    seen: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for source in sources:
            for batch in source.batches(BATCH):
                done += len(batch)
                batch = [each for each in batch if each.data is not None or each.path not in seen]
                seen.update(each.path for each in batch)
                pixels: list[Tensor] = []
                for candidate, found in zip(batch, threads.map(lambda each: _try(clip, each), batch), strict=True):
                    if isinstance(found, ImageError):
                        reason = str(found).removeprefix(f"{candidate.path}: ")
                        source.unread.stop_if_strict(candidate.path, reason)
                        skipped.append({"path": candidate.path, "reason": reason})
                    else:
                        features.append(found[0])
                        pixels.append(found[1])
                parts.append(embed_views(clip, pixels).cpu())
                if progress is not None:
                    progress(done, total)
    return features, torch.cat(parts).numpy()


def _try(clip: CLIP, candidate: Candidate) -> tuple[Features, Tensor] | ImageError:
    try:
        return _read(clip, candidate)
    except ImageError as error:
        return error


def _read(clip: CLIP, candidate: Candidate) -> tuple[Features, Tensor]:
    """What is kept of a picture, and what the CLIP sees of it (1, 3, H, W) uint8."""
    try:
        data = candidate.contents()
        picture = read_picture(data, keep_mode=True, wanted=max(*clip.image_shape, JUDGED_SIDE))
    except ImageError as error:
        raise ImageError(f"{candidate.path}: {error}") from error
    image = picture.image
    has_alpha = opacity(image) is not None
    is_link = candidate.data is None and os.path.islink(existing(Path(candidate.path)))
    worth = quality(candidate.path, picture.size, picture.frame is not None, is_lossy(data), has_alpha, is_link)
    return Features(
        candidate.path, worth, len(data), fingerprint(image), detail(image), tint(image), picture.frame
    ), views_for(clip, image)


def _similarity(features: Sequence[Features], embeddings: np.ndarray, one: int, other: int) -> Similarity:
    cosine = float(embeddings[one] @ embeddings[other])
    a, b = features[one].marks, features[other].marks
    return Similarity(min(max(cosine, -1.0), 1.0), (a.shape ^ b.shape).bit_count(), a.exact == b.exact)


def _match(one: Features, other: Features, distance: int) -> bool:
    """Whether two pictures are nearly the same by their fingerprints."""
    a, b = one.marks, other.marks
    if a.shows != ENOUGH or b.shows != ENOUGH or (a.shape ^ b.shape).bit_count() > distance:
        return False
    if distance > MAX_DISTANCE:
        return True
    if not alike_copies(a.copy[None], b.copy)[0]:
        return False
    return same_detail(one.detail, other.detail) and same_tint(one.tint, other.tint)


def _best_first(picture: Features) -> tuple[int, int, str]:
    """A sort key that puts the picture to keep first: the best quality, then most bytes."""
    return (-picture.quality, -picture.size, picture.path)


def _split(
    features: Sequence[Features], embeddings: np.ndarray, group: Sequence[int], cosine: float, distance: int
) -> Iterator[list[int]]:
    """Split linked pictures into clusters: the best with all that match it, then the best of the rest, and so on."""
    rest = sorted(group, key=lambda row: _best_first(features[row]))
    while len(rest) > 1:
        best = features[rest[0]]
        near = embeddings[rest] @ embeddings[rest[0]] >= cosine - SLACK
        members, left = [rest[0]], []
        for row, is_near in zip(rest[1:], near[1:].tolist(), strict=True):
            other = features[row]
            matches = other.marks.exact == best.marks.exact or (is_near and _match(best, other, distance))
            (members if matches else left).append(row)
        if len(members) > 1:
            yield members
        rest = left


def _cluster(features: Sequence[Features], embeddings: np.ndarray, members: Sequence[int]) -> Cluster:
    """A cluster of rows of which the first is the picture to keep."""
    best, *others = members
    duplicates = [(features[row].path, _similarity(features, embeddings, best, row)) for row in others]
    return Cluster(features[best].path, duplicates)
