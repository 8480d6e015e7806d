"""Measures how similar two pictures are, and finds near-duplicates among many. Nothing is deleted.

Two measures must agree: CLIP's cosine, which alone would match pictures of the same kind of thing, and a perceptual
hash, which alone would match pictures with the same outline.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from codebrush.data.curation.near_duplicates import BITS, fingerprint
from codebrush.data.images import decode_image
from codebrush.errors import ImageError, UsageError
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.search.embedding import clip_pixels, embed
from codebrush.search.pictures import Candidate, Source

BATCH = 256
THREADS = 4
JPEG_START = b"\xff\xd8"
BLOCK = 2_048  # pictures compared with as many others at once
# On 500 emoji, which are more alike than most pictures, these find every copy of half the side, nearly every JPEG of
# quality 40, and about half of the copies cropped by 4 % at each edge. Of the 124,750 pairs of different emoji they
# match ten: men with women, one skin tone with the next.
COSINE = 0.98
DISTANCE = 8  # bits of 64
SLACK = 1e-6  # rounding error of a cosine in float32


@dataclass(frozen=True)
class Features:
    """What is kept of a picture beside its embedding; `pixels` and `shape` are the hashes of its fingerprint."""

    path: str
    area: int  # in pixels
    size: int  # in bytes
    is_jpeg: bool  # a JPEG cannot be the original of a lossless file
    pixels: int
    shape: int


@dataclass(frozen=True)
class Similarity:
    """`cosine` is that of CLIP's embeddings, -1 to 1; `distance` the number of differing hash bits, 0 to 64."""

    cosine: float
    distance: int
    identical: bool  # in every pixel


@dataclass(frozen=True)
class Cluster:
    """Near-duplicates: the picture to keep, and the others with their similarity to it."""

    representative: str
    duplicates: list[tuple[str, Similarity]]


@dataclass(frozen=True)
class DuplicateReport:
    """`pictures` is how many could be read; `skipped` lists the others, each with the reason."""

    pictures: int
    clusters: list[Cluster]
    skipped: list[dict[str, str]]


def compare(clip: CLIP, one: str, other: str) -> Similarity:
    """How similar two picture files are. Raises ImageError if one cannot be read."""
    features, pixels = zip(*(_read(clip, Candidate(path, path, "", {})) for path in (one, other)), strict=True)
    return _similarity(features, embed(clip, pixels).numpy(), 0, 1)


def find_duplicates(
    sources: Sequence[Source],
    clip: CLIP,
    cosine: float = COSINE,
    distance: int = DISTANCE,
    progress: Progress | None = None,
) -> DuplicateReport:
    """Cluster the near-duplicates among the pictures of `sources`.

    A pair matches if its cosine is at least `cosine` (-1 to 1) and at most `distance` (0 to 64) hash bits differ. The
    best picture is clustered with all that match it, then the best of the rest, and so on. Pictures that are only
    linked through others are not in one cluster, so that whoever deletes the duplicates keeps a match of each. Uses
    4 E + 100 bytes a picture.

    Raises:
        UsageError: if a threshold is out of range.
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
        groups.join(row, first.setdefault(each.pixels, row))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    shapes = np.array([features[row].shape for row in rows], dtype=np.uint64)
    for one, other in near_pairs(embeddings[rows], shapes, cosine, distance):
        groups.join(int(rows[one]), int(rows[other]))
    clusters = [
        _cluster(features, embeddings, members)
        for group in groups.larger_than_one()
        for members in _split(features, embeddings, group, cosine, distance)
    ]
    return DuplicateReport(len(features), sorted(clusters, key=lambda each: each.representative), skipped)


def near_pairs(embeddings: np.ndarray, shapes: np.ndarray, cosine: float, distance: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i, j), i < j, of unit vectors (N, E) with at least this cosine, whose 64-bit hashes (N,) uint64
    differ in at most `distance` bits. Works in blocks: memory does not grow with the number of pairs.
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
            yield from zip((ones + top).tolist(), (others + left).tolist(), strict=True)


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
            candidates = iter(source.candidates)
            while batch := list(islice(candidates, BATCH)):
                done += len(batch)
                batch = [each for each in batch if each.data is not None or each.path not in seen]
                seen.update(each.path for each in batch)
                pixels: list[Tensor] = []
                for candidate, found in zip(batch, threads.map(lambda each: _try(clip, each), batch), strict=True):
                    if isinstance(found, ImageError):
                        reason = str(found).removeprefix(f"{candidate.path}: ")
                        skipped.append({"path": candidate.path, "reason": reason})
                    else:
                        features.append(found[0])
                        pixels.append(found[1])
                parts.append(embed(clip, pixels))
                if progress is not None:
                    progress(done, total)
    return features, torch.cat(parts).numpy()


def _try(clip: CLIP, candidate: Candidate) -> tuple[Features, Tensor] | ImageError:
    try:
        return _read(clip, candidate)
    except ImageError as error:
        return error


def _read(clip: CLIP, candidate: Candidate) -> tuple[Features, Tensor]:
    """What is kept of a picture, and what the CLIP sees of it (3, H, W) uint8."""
    try:
        data = candidate.contents()
        image = decode_image(data, keep_mode=True)
    except ImageError as error:
        raise ImageError(f"{candidate.path}: {error}") from error
    hashes = fingerprint(decode_image(image))
    is_jpeg = data.startswith(JPEG_START)
    area = image.width * image.height
    return Features(candidate.path, area, len(data), is_jpeg, hashes.pixels, hashes.shape), clip_pixels(clip, image)


def _similarity(features: Sequence[Features], embeddings: np.ndarray, one: int, other: int) -> Similarity:
    cosine = float(embeddings[one] @ embeddings[other])
    a, b = features[one], features[other]
    return Similarity(min(max(cosine, -1.0), 1.0), (a.shape ^ b.shape).bit_count(), a.pixels == b.pixels)


def _best_first(picture: Features) -> tuple[int, bool, int, str]:
    """A sort key that puts the picture to keep first: most pixels, then no JPEG, then most bytes."""
    return (-picture.area, picture.is_jpeg, -picture.size, picture.path)


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
            matches = is_near and (other.shape ^ best.shape).bit_count() <= distance
            (members if matches or other.pixels == best.pixels else left).append(row)
        if len(members) > 1:
            yield members
        rest = left


def _cluster(features: Sequence[Features], embeddings: np.ndarray, members: Sequence[int]) -> Cluster:
    """A cluster of rows of which the first is the picture to keep."""
    best, *others = members
    duplicates = [(features[row].path, _similarity(features, embeddings, best, row)) for row in others]
    return Cluster(features[best].path, duplicates)
