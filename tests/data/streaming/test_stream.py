"""Rows of shards by number: on disk, over HTTP, in another file system; what cannot be read costs itself."""

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from codebrush.data.streaming.shards import Shard, find_shards, rows_in
from codebrush.data.streaming.stream import Stream
from codebrush.errors import DataError
from shard_files import colour, row_shown, write_shards


def read(stream: Stream, rows: list[int]) -> list[tuple[int, int, list[str]]]:
    """Of each row: the row that stands for it, that which its picture shows, and the captions."""
    ready = [stream.ready(row, 8) for row in rows]
    return [(row.number, row_shown(row.pixels), stream.captions(row.number)) for row in ready]


def expected(rows: list[int]) -> list[tuple[int, int, list[str]]]:
    return [(row, row, [f"row {row}"]) for row in rows]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    http.server.SimpleHTTPRequestHandler.log_message = lambda *_: None  # pyright: ignore
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_each_row_has_its_picture_and_captions_whatever_the_order(kind: str, tmp_path: Path, cache: Path) -> None:
    stream = Stream(str(write_shards(tmp_path / "shards", [3, 1, 4], kind)), cache, most=2)
    assert (len(stream), stream.counts.tolist()) == (8, [3, 1, 4])
    rows = [7, 0, 3, 5, 2, 4, 6, 1]
    assert read(stream, rows) == expected(rows)
    assert len([*stream._spool.folder.iterdir()]) <= 2  # no more than two shards have copies
    stream.close()
    assert not [*cache.glob("stream-*")]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_over_http_are_those_on_disk(tmp_path: Path, kind: str, cache: Path, server: str) -> None:
    folder = write_shards(tmp_path / "shards", [3, 1, 4], kind)
    stream = Stream(f"{server}/{folder.name}/{{0000..0002}}.{kind}", cache, most=4)
    assert read(stream, [*range(8)]) == expected([*range(8)])
    assert not stream.unread.named
    stream.close()


def test_a_server_that_gives_no_parts_of_files_is_read_through(tmp_path: Path, server: str) -> None:
    with tarfile.open(tmp_path / "large.tar", "w") as shard:
        for name in ("0.png", "0.txt", "1.png", "2.png"):
            member = tarfile.TarInfo(name)
            member.size = 3 << 20
            shard.addfile(member, io.BytesIO(bytes(member.size)))
    found = find_shards(f"{server}/large.tar")
    assert found is not None
    assert rows_in(found[0]) == 3


def test_shards_of_another_file_system_are_found_and_fetched(tmp_path: Path, cache: Path) -> None:
    folder, memory = write_shards(tmp_path / "shards", [3, 1, 4]), fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/pets", recursive=True)
    try:
        for source in ("memory://bucket/pets", "memory://bucket/pets/*.tar"):
            stream = Stream(source, cache, most=4)
            assert read(stream, [*range(8)]) == expected([*range(8)])
            stream.close()
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_server_that_is_not_there_is_one_line(cache: Path) -> None:
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/0000.tar: cannot be reached: Cannot connect") as caught:
        Stream("http://127.0.0.1:9/0000.tar", cache, most=1)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_gone_later_stops_the_run_and_says_how_to_go_on(
    tmp_path: Path, cache: Path, server: str
) -> None:
    folder = write_shards(tmp_path / "shards", [3, 2])
    stream = Stream(f"{server}/{folder.name}/{{0000..0001}}.tar", cache, most=1)
    assert read(stream, [0]) == expected([0])
    (folder / "0001.tar").unlink()
    with pytest.raises(DataError, match=r"0001.tar: .*tried 3 times: .* --resume"):
        stream.ready(3, 8)
    assert read(stream, [2]) == expected([2])
    stream.close()


def test_a_broken_picture_is_named_once_and_the_next_one_stands_for_it(tmp_path: Path, cache: Path) -> None:
    stream = Stream(str(write_shards(tmp_path / "shards", [4, 3], broken=(1, 2, 6))), cache, most=2)
    with pytest.warns(UserWarning, match="left out") as told:
        found = [read(stream, [row])[0][0] for row in [0, 1, 2, 3, 4, 5, 6, 1, 2]]
    assert found == [0, 3, 3, 3, 4, 5, 4, 3, 3]  # at the end of a shard, its first
    assert [item for item, _ in stream.unread.named] == ["000001", "000002", "000006"]
    assert stream.skipped == 3
    assert len(told) == 3
    stream.close()


def test_a_shard_that_is_no_tar_is_left_out_and_others_go_on(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [3, 2])
    (folder / "0002.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.warns(UserWarning, match=r"0002\.tar: .*, and is left out"):
        stream = Stream(str(folder), cache, most=2)
    assert stream.counts.tolist() == [3, 2]
    assert [Path(item).name for item, _ in stream.unread.named] == ["0002.tar"]
    stream.close()
    with pytest.raises(DataError, match=r"0002\.tar"):
        Stream(str(folder), cache, most=2, strict=True)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_shard_without_a_readable_picture_is_stood_in_for_by_the_next(tmp_path: Path, cache: Path) -> None:
    stream = Stream(str(write_shards(tmp_path / "shards", [2, 3], broken=(0, 1))), cache, most=2)
    assert [number for number, *_ in read(stream, [0, 1])] == [2, 2]
    stream.close()


@pytest.mark.filterwarnings("ignore:.*left out")
def test_none_that_can_be_read_is_an_error(tmp_path: Path, cache: Path) -> None:
    stream = Stream(str(write_shards(tmp_path / "shards", [2], broken=(0, 1))), cache, most=2)
    with pytest.raises(DataError, match="none of its 2 pictures can be read"):
        stream.ready(0, 8)
    stream.close()


def test_conditions_limits_and_templates_are_those_of_other_sources(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [4, 4, 4], "parquet")
    stream = Stream(str(folder), cache, most=3, where=("row >= 2", "row != 5"), captions=("number {row}",), limit=6)
    assert stream.counts.tolist() == [2, 3, 1]
    assert [stream.captions(stream.ready(row, 8).number) for row in range(6)] == [
        [f"number {row}"] for row in (2, 3, 4, 6, 7, 8)
    ]
    stream.close()


def test_the_names_of_shards_say_their_split(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [1, 1])
    (folder / "0000.tar").rename(folder / "train-0000.tar")
    (folder / "0001.tar").rename(folder / "val-0000.tar")
    found = find_shards(str(folder), "val")
    assert found is not None
    assert [Path(shard.address).name for shard in found] == ["val-0000.tar"]
    with pytest.raises(DataError, match="no shard of the split test"):
        find_shards(str(folder), "test")


def test_a_source_without_shards_is_one_of_a_single_one(tmp_path: Path, cache: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(3):
        Image.new("RGB", (8, 8), colour(row)).save(folder / f"{row}.png")
        (folder / f"{row}.txt").write_text(f"row {row}")
    assert find_shards(str(folder)) is None
    stream = Stream(str(folder), cache, most=2)
    assert read(stream, [2, 0, 1]) == expected([2, 0, 1])
    stream.close()


def test_counts_are_kept_and_follow_the_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, counted = write_shards(tmp_path / "shards", [3, 2]), list[str]()

    def counting(shard: Shard) -> int:
        counted.append(Path(shard.address).name)
        return rows_in(shard)

    monkeypatch.setattr("codebrush.data.streaming.stream.rows_in", counting)
    for _ in range(2):
        Stream(str(folder), cache, most=2).close()
    assert counted == ["0000.tar", "0001.tar"]
    (folder / "0001.tar").write_bytes((folder / "0000.tar").read_bytes())
    stream = Stream(str(folder), cache, most=2)
    assert stream.counts.tolist() == [3, 3]
    stream.close()
