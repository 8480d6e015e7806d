"""Pictures in; how alike two of them are, and which of many are nearly the same, out. Nothing is deleted.

Two measures must agree: CLIP's cosine, which takes pictures of one kind for the same, and the perceptual hash, which
takes pictures of one outline for the same.
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
from codebrush.search.embedding import embed, fitted
from codebrush.search.pictures import Candidate, Source

BATCH = 256
THREADS = 4
JPEG_START = b"\xff\xd8"
BLOCK = 2_048  # pictures that are compared with as many others at once
# On 500 emoji, which are harder to tell apart than most pictures, these find every copy of half the side, nearly every
# JPEG of quality 40 and about half of those that lost 4 % at each edge. Of the 124,750 pairs of different emoji they
# take ten: men for women, one skin tone for the next.
COSINE = 0.98
DISTANCE = 8  # bits of 64
SLACK = 1e-6  # of a cosine in float32


@dataclass(frozen=True)
class Look:
    """What is kept of a picture: `pixels` and `shape` are those of its fingerprint."""

    path: str
    area: int  # in pixels
    size: int  # in bytes
    is_jpeg: bool  # which cannot be the original of a file without losses
    pixels: int
    shape: int


@dataclass(frozen=True)
class Alike:
    """`cosine` is CLIP's, -1 to 1; `distance` counts the differing bits of the perceptual hashes, 0 to 64."""

    cosine: float
    distance: int
    identical: bool  # in every pixel


@dataclass(frozen=True)
class Cluster:
    """Pictures that are nearly the same: the one to keep, and how each of the others, which all agree, compares."""

    representative: str
    duplicates: list[tuple[str, Alike]]


@dataclass(frozen=True)
class DuplicateReport:
    """`pictures` counts what could be read; `skipped` names the rest, each with its reason."""

    pictures: int
    clusters: list[Cluster]
    skipped: list[dict[str, str]]


def compare(clip: CLIP, one: str, other: str) -> Alike:
    """How alike two picture files are. Raises ImageError naming one that cannot be read."""
    looks, views = zip(*(_look(clip, Candidate(path, path, "", {})) for path in (one, other)), strict=True)
    return _alike(looks, embed(clip, views).numpy(), 0, 1)


def find_duplicates(
    sources: Sequence[Source],
    clip: CLIP,
    cosine: float = COSINE,
    distance: int = DISTANCE,
    progress: Progress | None = None,
) -> DuplicateReport:
    """Cluster the pictures of `sources`: each member agrees in both measures with the one to keep.

    The best picture takes whatever agrees with it, the best of the rest does the same, and so on: what is only linked
    to it through others is not taken, so that of every picture that is deleted a like is kept. Raises UsageError for
    thresholds out of range. Keeps about 4 E + 100 bytes a picture.
    """
    if not -1 <= cosine <= 1:
        raise UsageError(f"the least cosine is {cosine:g}; it must be between -1 and 1")
    if not 0 <= distance <= BITS:
        raise UsageError(f"the most bits that may differ are {distance}; it must be between 0 and {BITS}")
    skipped: list[dict[str, str]] = []
    looks, embeddings = _look_at_all(sources, clip, skipped, progress)
    groups = _Groups(len(looks))
    # Exact copies are joined first: among n of them there are n^2 pairs that nobody needs to look at.
    first: dict[int, int] = {}
    for row, look in enumerate(looks):
        groups.join(row, first.setdefault(look.pixels, row))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    shapes = np.array([looks[row].shape for row in rows], dtype=np.uint64)
    for one, other in near_pairs(embeddings[rows], shapes, cosine, distance):
        groups.join(int(rows[one]), int(rows[other]))
    clusters = [
        _cluster(looks, embeddings, members)
        for group in groups.larger_than_one()
        for members in _agreeing(looks, embeddings, group, cosine, distance)
    ]
    return DuplicateReport(len(looks), sorted(clusters, key=lambda each: each.representative), skipped)


def near_pairs(embeddings: np.ndarray, shapes: np.ndarray, cosine: float, distance: int) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of unit vectors (N, E) at least `cosine` alike, whose 64-bit hashes (N,) uint64 differ in
    at most `distance` bits. Block by block: memory does not grow with the number of pairs.
    """
    octets = np.ascontiguousarray(shapes, dtype=">u8").view(np.uint8).reshape(-1, 8)  # (N, 8)
    signs = np.unpackbits(octets, axis=1).astype(np.float32) * 2 - 1  # (N, 64)
    for top in range(0, len(embeddings), BLOCK):
        rows = slice(top, top + BLOCK)
        for left in range(top, len(embeddings), BLOCK):
            columns = slice(left, left + BLOCK)
            near = embeddings[rows] @ embeddings[columns].T >= cosine - SLACK  # (block, block)
            near &= signs[rows] @ signs[columns].T >= BITS - 2 * distance  # each differing bit takes away two
            ones, others = np.nonzero(np.triu(near, 1) if left == top else near)
            yield from zip((ones + top).tolist(), (others + left).tolist(), strict=True)


class _Groups:
    """Sets that grow together (Tarjan 1975), each known by its lowest row."""

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


def _look_at_all(
    sources: Sequence[Source],
    clip: CLIP,
    skipped: list[dict[str, str]],
    progress: Progress | None,
) -> tuple[list[Look], np.ndarray]:
    """Of each readable picture, once, what is kept, and its embedding: N and (N, E)."""
    total, done = sum(source.count for source in sources), 0
    looks: list[Look] = []
    parts: list[Tensor] = [torch.zeros(0, clip.embed_dim)]
    seen: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for source in sources:
            candidates = iter(source.candidates)
            while batch := list(islice(candidates, BATCH)):
                done += len(batch)
                batch = [each for each in batch if each.data is not None or each.path not in seen]
                seen.update(each.path for each in batch)
                views: list[Tensor] = []
                for candidate, found in zip(batch, threads.map(lambda each: _try(clip, each), batch), strict=True):
                    if isinstance(found, ImageError):
                        reason = str(found).removeprefix(f"{candidate.path}: ")
                        skipped.append({"path": candidate.path, "reason": reason})
                    else:
                        looks.append(found[0])
                        views.append(found[1])
                parts.append(embed(clip, views))
                if progress is not None:
                    progress(done, total)
    return looks, torch.cat(parts).numpy()


def _try(clip: CLIP, candidate: Candidate) -> tuple[Look, Tensor] | ImageError:
    try:
        return _look(clip, candidate)
    except ImageError as error:
        return error


def _look(clip: CLIP, candidate: Candidate) -> tuple[Look, Tensor]:
    try:
        data = candidate.contents()
        image = decode_image(data, keep_mode=True)
    except ImageError as error:
        raise ImageError(f"{candidate.path}: {error}") from error
    seen = fingerprint(decode_image(image))
    is_jpeg = data.startswith(JPEG_START)
    look = Look(candidate.path, image.width * image.height, len(data), is_jpeg, seen.pixels, seen.shape)
    return look, fitted(clip, image)


def _alike(looks: Sequence[Look], embeddings: np.ndarray, one: int, other: int) -> Alike:
    cosine = float(embeddings[one] @ embeddings[other])
    a, b = looks[one], looks[other]
    return Alike(min(max(cosine, -1.0), 1.0), (a.shape ^ b.shape).bit_count(), a.pixels == b.pixels)


def _worth(look: Look) -> tuple[int, bool, int, str]:
    """Sorts the one to keep first: of the most pixels, rather no JPEG, of the most bytes."""
    return (-look.area, look.is_jpeg, -look.size, look.path)


def _agreeing(
    looks: Sequence[Look], embeddings: np.ndarray, group: Sequence[int], cosine: float, distance: int
) -> Iterator[list[int]]:
    """Split pictures that are linked: the best with all that agree with it, then the same of the rest."""
    rest = sorted(group, key=lambda row: _worth(looks[row]))
    while len(rest) > 1:
        best = looks[rest[0]]
        near = embeddings[rest] @ embeddings[rest[0]] >= cosine - SLACK
        members, left = [rest[0]], []
        for row, is_near in zip(rest[1:], near[1:].tolist(), strict=True):
            look = looks[row]
            agrees = is_near and (look.shape ^ best.shape).bit_count() <= distance
            (members if agrees or look.pixels == best.pixels else left).append(row)
        if len(members) > 1:
            yield members
        rest = left


def _cluster(looks: Sequence[Look], embeddings: np.ndarray, members: Sequence[int]) -> Cluster:
    """From members of which the first is the one to keep."""
    best, *others = members
    return Cluster(looks[best].path, [(looks[row].path, _alike(looks, embeddings, best, row)) for row in others])
