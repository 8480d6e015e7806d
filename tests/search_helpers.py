"""Writes small pictures, and databases with rows that need no pictures."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from codebrush.data.synthetic.shapes import scene
from codebrush.search.database import Database, Embedder, create_database

EMBEDDER = Embedder("micro", "a" * 64)


def write_scenes(folder: Path, count: int, captions: bool = True, first: int = 0) -> list[Path]:
    """Scenes of drawn shapes as PNG files of 16 x 16, with their captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first + index:03}.png" for index in range(count)]
    for index, path in enumerate(paths):
        drawn = scene(0, first + index, 16)
        drawn.image.save(path)
        if captions:
            path.with_suffix(".txt").write_text(drawn.caption)
    return paths


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def database_of(folder: Path, vectors: np.ndarray, captions: list[str] | None = None) -> Database:
    """A database with the rows 0, 1, 2 ... of unit vectors (N, E), settled."""
    database = create_database(folder, EMBEDDER, vectors.shape[1])
    count = len(vectors)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns = {
        "path": pa.array([str(row) for row in range(count)]),
        "caption": pa.array(captions or [""] * count, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "size": pa.array(range(count), pa.int64()),
        "thumbnail": pa.array([b""] * count, pa.binary()),
    }
    schema = pa.schema([database.table.schema.field(name) for name in columns])
    database.write(pa.table(list(columns.values()), schema=schema))
    database.settle()
    return database
