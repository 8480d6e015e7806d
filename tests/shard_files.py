"""Writes small shards with pictures of one colour each, which says which row they are."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from codebrush.data.sources.shard_writer import ParquetShard, TarShard


def colour(row: int) -> tuple[int, int, int]:
    """The colour of a row's picture."""
    return row % 256, row // 256, 99


def row_shown(pixels: np.ndarray) -> int:
    """The row that a picture (S, S, 3) is of."""
    return int(pixels[0, 0, 0]) + 256 * int(pixels[0, 0, 1])


def write_shards(
    folder: Path,
    counts: Sequence[int],
    kind: str = "tar",
    broken: Collection[int] = (),
    splits: Sequence[str] = (),
) -> Path:
    """Shards of `counts` rows, numbered through, with the caption "row N"; the pictures of `broken` are cut off. Rows
    have `splits` in turn."""
    folder.mkdir()
    schema = pa.schema([("caption", pa.string()), ("row", pa.int64()), *([("split", pa.string())] if splits else [])])
    row = 0
    for number, count in enumerate(counts):
        path = folder / f"{number:04d}.{kind}"
        shard = TarShard(path) if kind == "tar" else ParquetShard(path, schema)
        for _ in range(count):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), colour(row)).save(file, "PNG")
            picture = file.getvalue()[:50] if row in broken else file.getvalue()
            split = {"split": splits[row % len(splits)]} if splits else {}
            shard.add(f"{row:06d}", picture, [f"row {row}"], {"caption": f"row {row}", "row": row, **split})
            row += 1
        shard.close()
    return folder
