"""Writes picture files with captions and columns as numbered WebDataset or Parquet shards.

`open_source` reads a folder of shards back. Picture files are copied, not compressed again, unless WebDataset has no
extension for their format.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from codebrush.data.decoding.images import decode_image, format_of

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSION_OF = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "ICO": "ico",
    "PPM": "ppm",
}
GROUP_BYTES = 32 << 20  # of pictures in memory before a Parquet row group is written
KINDS = ("tar", "parquet")


class TarShard:
    """One WebDataset shard: `key`.jpg (or another format), `key`.txt with the first caption, `key`.json with all
    columns.

    All time stamps are 0, so that the same rows give the same bytes.
    """

    def __init__(self, path: str | Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, key: str, picture: bytes, captions: list[str], columns: Mapping[str, Any]) -> None:
        """Append one row. Values of `columns` that are not JSON are stored as their `str`.

        Raises:
            ImageError: if `picture` is not a picture that can be opened.
        """
        extension, picture = storable(picture)
        self._file(f"{key}.{extension}", picture)
        self._file(f"{key}.txt", captions[0].encode())
        self._file(f"{key}.json", json.dumps(dict(columns), ensure_ascii=False, default=str).encode())

    def close(self) -> None:
        """Finish the file."""
        self._tar.close()

    def _file(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


class ParquetShard:
    """One Parquet file with the column `image` of {"bytes", "path"} beside the columns of `schema`."""

    def __init__(self, path: str | Path, schema: "pa.Schema") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Compressed pictures do not shrink further; zstd is for the text.
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        about = {"info": {"features": _features(schema)}}
        self._schema = schema.append(pa.field("image", picture)).with_metadata({"huggingface": json.dumps(about)})
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, key: str, picture: bytes, captions: list[str], columns: Mapping[str, Any]) -> None:
        """Append one row; `columns` must fit the schema.

        Raises:
            ImageError: if `picture` is not a picture that can be opened.
        """
        extension, picture = storable(picture)
        self._rows.append({**columns, "image": {"bytes": picture, "path": f"{key}.{extension}"}})
        self._bytes += len(picture)
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0


class ShardWriter:
    """Writes rows to series of shards of up to `rows` rows: `folder`/`name`-00000.tar (or .parquet) and so on."""

    def __init__(self, folder: str | Path, kind: str, rows: int, schema: "pa.Schema") -> None:
        self.folder, self.kind, self.rows, self.schema = Path(folder), kind, rows, schema
        self._open: dict[str, TarShard | ParquetShard] = {}
        self._written: dict[str, int] = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._open.values():
            shard.close()

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows in each series."""
        return dict(self._written)

    @property
    def shards(self) -> int:
        """The number of files."""
        return sum(-(-count // self.rows) for count in self._written.values())

    def add(self, name: str, picture: bytes, captions: list[str], columns: Mapping[str, Any]) -> None:
        """Append one row to the series `name`.

        Raises:
            ImageError: if `picture` is not a picture that can be opened.
        """
        storable(picture)  # raises before a new shard is opened for it
        number = self._written.get(name, 0)
        if number % self.rows == 0:
            if name in self._open:
                self._open.pop(name).close()
            path = self.folder / f"{name}-{number // self.rows:05d}.{self.kind}"
            self._open[name] = TarShard(path) if self.kind == "tar" else ParquetShard(path, self.schema)
        self._open[name].add(f"{name}-{number:09d}", picture, captions, columns)
        self._written[name] = number + 1


def storable(picture: bytes) -> tuple[str, bytes]:
    """The extension and bytes to store a picture file with: its own, or those of a PNG if its format has no extension.

    Raises:
        ImageError: if `picture` is not a picture that can be opened.
    """
    kind = format_of(picture)
    if kind in EXTENSION_OF:
        return EXTENSION_OF[kind], picture
    file = io.BytesIO()
    decode_image(picture).save(file, "PNG")
    return "png", file.getvalue()


def _features(schema: "pa.Schema") -> dict[str, Any]:
    """The metadata by which `datasets` opens the column `image` as pictures."""
    from datasets import Features, Image

    return dict(Features({**Features.from_arrow_schema(schema), "image": Image()}).to_dict())  # pyright: ignore
