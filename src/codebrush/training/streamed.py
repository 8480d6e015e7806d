"""Large sources to train on: rows of shards that are read while they are needed, of one source or of a mix.

A `Streamed` stands in for a `Captioned` where a task asks for pictures, captions and groups by row. Which rows a step
sees is computed (`shard_order`), so that a resumed run goes on with the rows of an unbroken one.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codebrush.data.sources.unread import amount
from codebrush.data.streaming.shards import find_shards, is_remote
from codebrush.data.streaming.stream import Stream
from codebrush.errors import TrainingError
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, CaptionTokens, HasCaptions, SourceConfig, evenly, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.shard_order import MixedOrder, ShardOrder
from codebrush.training.engine.task import Hooks
from codebrush.warned import warn

LARGE = 16 << 30  # bytes of shards from which a source is streamed by itself


def is_streamed(config: SourceConfig, by_itself: bool | None = None) -> bool:
    """Whether a source on its own is streamed: always from an address; on disk as the source says, else as `by_itself`
    says, else by its size."""
    if is_remote(config.source):
        return True
    said = by_itself if config.stream is None else config.stream
    if said is not None:
        return said
    shards = find_shards(config.source, config.split, config.exclude)
    return shards is not None and sum(shard.size for shard in shards) > LARGE


def open_pictures(
    sources: Sequence[SourceConfig], size: int, cache: Path, *, streams: bool = True, by_itself: bool | None = None
) -> "Captioned | Streamed":
    """The rows of a source, decoded once into `cache` or streamed; several are a mix, which is streamed.

    `streams` says whether the stage that they are for can train on a stream; `by_itself` is that of `is_streamed`.

    Raises:
        DataError: if a source cannot be read.
        TrainingError: if the sources would be streamed and cannot be.
    """
    if len(sources) == 1 and not is_streamed(sources[0], by_itself if streams else False):
        return load_captioned(sources[0].open(), size, cache, sources[0].weight)
    if not streams:
        raise TrainingError(f"this stage reads all of its pictures ahead: {unstreamed(sources)}")
    return Streamed(sources, size, cache)


def unstreamed(sources: Sequence[SourceConfig]) -> str:
    """What to do where the rows of streamed sources are needed all at once."""
    if len(sources) > 1:
        return "name one source in place of the mix"
    if is_remote(sources[0].source):
        return "download the source, and name the copy"
    return "set source.stream: false"


class Streamed:
    """The rows of streamed sources, numbered one source after the other, with pictures of one size.

    Rows that a task is handed have gone through `ready`, which puts others in place of those that cannot be read.
    """

    weights = weight = None  # of each row, which would have to be read ahead

    def __init__(self, sources: Sequence[SourceConfig], size: int, cache: Path):
        _check(sources)
        self.sources, self.size = sources, size
        self.streams = [_stream(source, cache) for source in sources]
        self.first = np.cumsum([0, *map(len, self.streams)])
        workers = {os.cpu_count() or 1 if source.workers is None else source.workers for source in sources}
        self._pool = ThreadPoolExecutor(max(workers)) if max(workers) else None
        self._orders: list[ShardOrder] = []
        self._pixels: dict[int, np.ndarray] = {}  # of the rows that are ready

    def __len__(self) -> int:
        return int(self.first[-1])

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the shards, and of the settings that decide the order of rows."""
        order = [
            [stream.fingerprint, source.open_shards, source.share]
            for stream, source in zip(self.streams, self.sources, strict=True)
        ]
        return hashlib.sha256(json.dumps(order).encode()).hexdigest()

    @property
    def unstreamed(self) -> str:
        """What to do where all rows are needed at once."""
        return unstreamed(self.sources)

    @property
    def broken(self) -> frozenset[tuple[int, ...]]:
        """The pictures that could not be decoded so far, by source, shard and place."""
        return frozenset((source, *where) for source, stream in enumerate(self.streams) for where in stream.broken)

    @cached_property
    def groups(self) -> "_Groups":
        """The groups of rows, int64, equal for rows that show the same thing."""
        return _Groups(self)

    def hooks(self, hooks: Hooks, loop: LoopConfig) -> Hooks:
        """`hooks` with the order of the shards.

        Raises:
            TrainingError: if the stage chooses rows by itself.
        """
        if hooks.rows is not None:
            raise TrainingError(f"streamed pictures have an order of their own: take out replay, or {self.unstreamed}")
        self._orders = [
            ShardOrder(stream.counts, loop.seed + number, source.open_shards)
            for number, (stream, source) in enumerate(zip(self.streams, self.sources, strict=True))
        ]
        order = MixedOrder(self._orders, [source.share for source in self.sources], loop.batch_size)
        return replace(hooks, rows=order.of_step, ready=self.ready)

    def ready(self, rows: np.ndarray) -> np.ndarray:
        """Decode the pictures of `rows` for the next batch; returns the rows with readable ones in place of others."""
        self._expect(rows)

        def read(row: int) -> tuple[int, np.ndarray]:
            source, inside = self._source(row)
            found = self.streams[source].ready(inside, self.size)
            return int(self.first[source]) + found.number, found.pixels

        one_by_one: Iterable[tuple[int, np.ndarray]] = map(read, rows.tolist())
        found = list(one_by_one if self._pool is None else self._pool.map(read, rows.tolist()))
        self._pixels = dict(found)
        return np.array([row for row, _ in found], np.int64)

    def images(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """The pictures of `rows`, (B, 3, S, S) uint8."""
        pixels = np.stack([self._pixels[int(row)] for row in rows])  # (B, S, S, 3)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def captions(self, row: int) -> list[str]:
        """Every caption that the templates make of a row."""
        source, inside = self._source(row)
        return self.streams[source].captions(inside)

    def group(self, row: int) -> str:
        """The name of the group of a row, which is one of its source alone."""
        source, inside = self._source(row)
        return f"{source} {self.streams[source].group(inside)}"

    def sample(self, count: int) -> np.ndarray:
        """Up to `count` readable rows, of the first shard alone, made ready."""
        return self.ready(evenly(int(self.streams[0].counts[0]), count))

    def close(self) -> None:
        """Remove copies of shards, and tell what could not be read in all."""
        for stream in self.streams:
            stream.close()
            said = [amount(kind, number) for kind, number in sorted(stream.unread.counted.items())]
            if stream.unread.named:
                said.insert(0, amount("shard or picture", len(stream.unread.named)))
            if said:
                warn(f"{stream.source}: {', '.join(said)} could not be read or were left out")

    def _source(self, row: int) -> tuple[int, int]:
        """The source of a row, and the row's number in it."""
        source = int(np.searchsorted(self.first, row, side="right")) - 1
        return source, row - int(self.first[source])

    def _expect(self, rows: np.ndarray) -> None:
        """Begin to open the shards of `rows`, and those that follow them."""
        sources = np.searchsorted(self.first, rows, side="right") - 1
        for source in np.unique(sources).tolist():
            stream = self.streams[source]
            shards = stream.shards_of(rows[sources == source] - self.first[source])
            following = self._orders[source].next if self._orders else {}
            stream.begin_batch([*shards, *(following[shard] for shard in shards if shard in following)])


class _Groups:
    """The groups of rows by their number; names are hashed, because not all are known ahead."""

    def __init__(self, data: Streamed):
        self.data = data

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        names = (self.data.group(row).encode() for row in rows.tolist())
        digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.array([int.from_bytes(digest, "big", signed=True) for digest in digests], np.int64)


class StreamedTokens:
    """Token ids of captions that are read when they are drawn, as `CaptionTokens` draws them."""

    def __init__(self, data: HasCaptions, tokenizer: Tokenizer):
        self.data, self.tokenizer = data, tokenizer

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """One caption of each row, drawn uniformly: (B, T) int64."""
        captions = [self.data.captions(row) for row in rows.tolist()]
        picks = rng.random(len(rows))
        drawn = [texts[int(pick * len(texts))] for texts, pick in zip(captions, picks.tolist(), strict=True)]
        return self.tokenizer(drawn, on_long="truncate").long()


def caption_tokens(data: HasCaptions, tokenizer: Tokenizer) -> CaptionTokens | StreamedTokens:
    """What draws the tokens of captions: from a table of all of them, or as they are streamed."""
    return StreamedTokens(data, tokenizer) if isinstance(data, Streamed) else CaptionTokens(data, tokenizer)


def _check(sources: Sequence[SourceConfig]) -> None:
    """Raises TrainingError for settings that streamed sources cannot have."""
    for number, source in enumerate(sources):
        is_mix = len(sources) > 1
        name = f"mix.{number}" if is_mix else "source"
        if source.weight is not None:
            remedy = "take it out, and give each source a share" if is_mix else unstreamed(sources)
            raise TrainingError(f"{name}.weight needs all rows ahead: {remedy}")
        if source.stream is False and (is_mix or is_remote(source.source)):
            what = "a mix" if is_mix else "an address"
            raise TrainingError(
                f"{name}.stream is false, but {what} is always streamed: take it out, or {unstreamed(sources)}"
            )


def _stream(source: SourceConfig, cache: Path) -> Stream:
    return Stream(
        source.source,
        cache,
        2 * source.open_shards,
        split=source.split,
        where=source.where,
        captions=source.captions,
        group=source.group,
        image_column=source.image_column,
        limit=source.limit,
        exclude=source.exclude,
        strict=source.strict,
    )
