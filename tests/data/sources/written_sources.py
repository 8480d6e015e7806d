"""Shards and tables as other tools write them, and the captions that are read of a source."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from codebrush.data.sources.captioned_images import CaptionedImages


def captions(source: CaptionedImages) -> list[str]:
    """The captions of each row, with bars between them."""
    return [" | ".join(source.captions(index)) for index in range(len(source))]


def write_tar(path: Path, files: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path
