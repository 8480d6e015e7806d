"""Writing shards: rows are read back byte for byte."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from codebrush.data.decoding.images import decode_image
from codebrush.data.decoding.picture_formats import READS_HEIC, READS_RAW
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.sources.shard_writer import EXTENSION_OF, ShardWriter, TarShard, storable
from codebrush.errors import ImageError
from photo_files import small_dng

SCHEMA = pa.schema([("captions", pa.list_(pa.string())), ("n", pa.int64())])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_rows_come_back(tmp_path: Path, picture: Callable[..., bytes], kind: str):
    colours = ["red", "blue", "green", "gold", "grey"]
    with ShardWriter(tmp_path, kind, 2, SCHEMA) as writer:
        for number, colour in enumerate(colours):
            writer.add(
                "train", picture(colour), [f"{colour} ü", "a plain one"], {"captions": [f"{colour} ü"], "n": number}
            )
        writer.add("val", picture("black"), ["black"], {"captions": ["black"], "n": 9})
    assert (writer.counts, writer.shards) == ({"train": 5, "val": 1}, 4)
    names = ["train-00000", "train-00001", "train-00002", "val-00000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.{kind}" for name in names]
    source = open_source(tmp_path, split="train")
    assert [source.captions(index) for index in range(5)] == [[f"{colour} ü"] for colour in colours]
    assert [source.row(index)["n"] for index in range(5)] == list(range(5))
    assert [source.image(index).getpixel((0, 0)) for index in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert len(open_source(tmp_path, split="val")) == 1


def test_a_parquet_file_says_that_it_holds_pictures(tmp_path: Path, picture: Callable[..., bytes]):
    """Other users of `datasets` get pictures, not bytes."""
    from datasets import Dataset

    with ShardWriter(tmp_path, "parquet", 9, SCHEMA) as writer:
        writer.add("train", picture("red"), ["red"], {"captions": ["red"], "n": 1})
    row = Dataset.from_parquet(str(tmp_path / "train-00000.parquet"))[0]
    assert isinstance(row["image"], Image.Image)


def test_large_pictures_do_not_pile_up(tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch):
    import pyarrow.parquet as pq

    from codebrush.data.sources import shard_writer

    monkeypatch.setattr(shard_writer, "GROUP_BYTES", 2 * len(picture("red")))
    with ShardWriter(tmp_path, "parquet", 99, SCHEMA) as writer:
        for number in range(5):
            writer.add("train", picture("red"), ["red"], {"captions": ["red"], "n": number})
    assert pq.ParquetFile(tmp_path / "train-00000.parquet").num_row_groups == 3


def test_a_tar_is_what_others_expect(tmp_path: Path, picture: Callable[..., bytes]):
    for name in ("one.tar", "two.tar"):
        shard = TarShard(tmp_path / name)
        shard.add(
            "000", picture("red", "JPEG"), ["a red one", "another"], {"captions": ["a red one"], "when": tmp_path}
        )
        shard.close()
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
    assert list(files) == ["000.jpg", "000.txt", "000.json"]
    assert files["000.jpg"] == picture("red", "JPEG")
    assert files["000.txt"] == b"a red one"
    assert json.loads(files["000.json"]) == {"captions": ["a red one"], "when": str(tmp_path)}


@pytest.mark.parametrize("kind", sorted(EXTENSION_OF))
def test_every_kind_keeps_its_bytes(picture: Callable[..., bytes], kind: str):
    data = picture("red", kind, (16, 16))
    assert storable(data) == (EXTENSION_OF[kind], data)


def test_a_format_without_an_extension_becomes_a_png(picture: Callable[..., bytes]):
    ending, data = storable(picture("red", "JPEG2000", (16, 16)))
    assert ending == "png"
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_several_pictures_in_a_jpeg_stay_a_jpeg():
    """As phones write them, for depth or for two lenses."""
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 7))])
    assert storable(file.getvalue()) == ("jpg", file.getvalue())


@pytest.mark.skipif(not READS_HEIC, reason="needs pillow-heif")
def test_a_heic_photo_becomes_a_png():
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(file, quality=95)
    ending, data = storable(file.getvalue())
    assert (ending, decode_image(data).size) == ("png", (64, 48))


@pytest.mark.skipif(not READS_RAW, reason="needs rawpy")
def test_camera_raw_in_the_form_of_tiff_becomes_a_png():
    """Its preview: other programs would find a TIFF file of something else."""
    ending, data = storable(small_dng(Image.new("RGB", (64, 48), "red"), 6))
    assert (ending, decode_image(data).size) == ("png", (48, 64))


def test_a_file_that_is_not_a_picture_starts_no_shard(tmp_path: Path):
    with (
        ShardWriter(tmp_path, "tar", 2, SCHEMA) as writer,
        pytest.raises(ImageError, match="not a picture of a known kind"),
    ):
        writer.add("train", b"nothing", ["x"], {})
    assert list(tmp_path.iterdir()) == []
