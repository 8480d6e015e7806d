"""Parquet files and shards of other tools: columns that no one reads, texts as JSON, pictures without an ending."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_sources import captions, write_parquet, write_tar

from codebrush.data.sources.captioned_images import open_source
from codebrush.errors import ImageError


def test_pictures_inside_objects_are_read_with_what_stands_beside_them(tmp_path, picture):
    cells = [{"image": {"bytes": picture("red"), "path": None}, "caption": "a thing", "size": {"w": 4}}]
    source = open_source(write_parquet(tmp_path / "a.parquet", data=cells, id=[7]))
    assert source.image(0).getpixel((0, 0)) == (255, 0, 0)
    assert (source.captions(0), source.row(0)) == (["a thing"], {"caption": "a thing", "w": 4, "id": 7})


def test_other_columns_of_files_are_told(tmp_path, picture):
    one, other = ([{"bytes": picture(colour), "path": None}] for colour in ("red", "blue"))
    path = write_parquet(tmp_path / "a.parquet", mask=other, image=one, text=["x"], phash=[b"12345678"])
    source = open_source(path)
    assert source.image(0).getpixel((0, 0)) == (255, 0, 0)
    assert source.unread.notes == ["reads the files in the column image, and not those in mask, phash"]


def test_of_several_columns_of_bytes_the_one_with_pictures_is_read(tmp_path, picture):
    path = write_parquet(
        tmp_path / "a.parquet", hash=[None, b"12345678"], photo=[None, picture("red")], text=["x", "y"]
    )
    source = open_source(path)
    assert source.image(1).getpixel((0, 0)) == (255, 0, 0)
    assert source.unread.notes == ["reads the files in the column photo, and not those in hash"]


def test_columns_that_cannot_be_held_cost_themselves(tmp_path, picture):
    tags = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    names = ["image", "text", "tags", "twice", "twice"]
    arrays = [pa.array([picture("red")]), pa.array(["x"]), tags, pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", image=[picture("blue")], text=["y"], n=[3])
    source = open_source(tmp_path)
    assert captions(source) == ["x", "y"]
    assert [source.cell(index, "n") for index in range(2)] == [None, 3]
    assert sorted(item.rpartition(", ")[2] for item, _ in source.unread.named) == ["tags", "twice"]
    assert not {"tags", "twice"} & {*source.schema.names}


def test_nan_of_json_is_an_empty_cell(tmp_path, picture):
    names = {"0.png": picture("red"), "0.json": '{"caption": NaN, "n": NaN}', "0.txt": "a thing"}
    names |= {"1.png": picture("blue"), "1.json": '{"caption": "two", "n": -Infinity}'}
    source = open_source(write_tar(tmp_path / "a.tar", names))
    assert captions(source) == ["a thing", "two"]
    assert [source.cell(index, "n") for index in range(2)] == [None, float("-inf")]


def test_a_shard_may_have_texts_and_lists_as_json(tmp_path, picture):
    names = {"0.png": picture("red"), "0.json": '["one", "two"]', "1.png": picture("blue"), "1.json": '"three"'}
    names |= {
        "2.png": picture("red"),
        "2.json": "[" * 100_000,
        "2.txt": "four",
        "3.png": picture("red"),
        "3.json": "[1]",
    }
    source = open_source(write_tar(tmp_path / "a.tar", names), require_captions=False)
    assert captions(source) == ["one | two", "three", "four", ""]
    assert [item.rpartition(": ")[2] for item, _ in source.unread.named] == ["2.json", "3.json"]


def test_pictures_of_a_shard_are_known_by_their_content_where_no_ending_tells(tmp_path, picture):
    names = {"0": picture("red"), "0.txt": "one", "1.bin": picture("blue"), "1.txt": "two"}
    names |= {"2.png": picture("red"), "2.mask": picture("blue"), "2.txt": "three", "3": b"other"}
    source = open_source(write_tar(tmp_path / "a.tar", names), require_captions=False)
    assert captions(source) == ["one", "two", "three"]
    assert [source.image(index).getpixel((0, 0)) for index in range(3)] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert source.unread.counted == {"member of the kind .mask": 1, "member without an ending": 1}


def test_an_empty_picture_of_a_shard_is_not_read_from_the_file_of_its_name(tmp_path, picture):
    (tmp_path / "data").mkdir()
    path = write_tar(tmp_path / "data" / "a.tar", {"0.png": b"", "0.txt": "one"})
    (tmp_path / "data" / "0.png").write_bytes(picture("red"))
    with pytest.raises(ImageError, match="0: the row holds no picture"):
        open_source(path).image(0)


def test_a_dot_in_the_name_of_a_column_stays(tmp_path, picture):
    path = write_parquet(tmp_path / "a.parquet", image=[picture()], text=["x"], **{"a.b": [1], "c": [{"d": 2}]})
    assert open_source(path).row(0) == {"text": "x", "a.b": 1, "d": 2}
