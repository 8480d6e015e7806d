"""What a stream knows of its shards before the first row: which there are, their rows, and what of them is lost."""

import json
import resource
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from codebrush.data.sources.captioned_images import open_source
from codebrush.data.streaming.shards import TRIES, FetchError, Shard, count_rows, find_shards, rows_in
from codebrush.data.streaming.stream import Stream
from codebrush.errors import DataError
from shard_files import write_shards

IN_STREAM = "codebrush.data.streaming.stream"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """Three shards, far away as it were, one of them in a folder of drafts."""
    memory = fsspec.filesystem("memory")
    folder = write_shards(tmp_path / "shards", [3, 1, 4])
    for name, place in (("0000", ""), ("0001", ""), ("0002", "drafts/")):
        memory.put(str(folder / f"{name}.tar"), f"/bucket/pets/{place}{name}.tar")
    yield "memory://bucket/pets"
    memory.rm("/bucket", recursive=True)


def names(found: list[Shard] | None) -> list[str]:
    return [shard.address.rpartition("/")[2] for shard in found or ()]


def test_what_fails_while_it_is_counted_is_asked_again_and_not_kept(
    bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, failing = list[str](), TRIES - 1

    def failing_first(shard: Shard) -> int:
        asked.append(shard.address)
        if asked.count(shard.address) <= failing and "0001" in shard.address:
            raise TimeoutError
        return rows_in(shard)

    monkeypatch.setattr(f"{IN_STREAM}.rows_in", failing_first)
    Stream(bucket, cache / "once", most=2).close()
    assert len(asked) == 3 + failing
    asked, failing = [], 100
    with pytest.raises(FetchError, match=r"0001\.tar: .*; tried 3 times: see to it"):
        Stream(bucket, cache / "always", most=2)
    failing = 0
    asked.clear()
    stream = Stream(bucket, cache / "always", most=2)
    assert stream.counts.tolist() == [3, 1, 4]
    assert 1 <= len(asked) < 3  # those that were counted before are known
    stream.close()


def test_a_shard_on_disk_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "shards", [2, 3])

    def forbidden(shard: Shard) -> int:
        if "0001" in shard.address:
            raise PermissionError(13, "Permission denied", shard.address)
        return rows_in(shard)

    monkeypatch.setattr(f"{IN_STREAM}.rows_in", forbidden)
    with pytest.raises(FetchError, match="Permission denied"):
        Stream(str(folder), cache, most=2)
    monkeypatch.undo()
    stream = Stream(str(folder), cache, most=2)
    assert stream.counts.tolist() == [2, 3]
    (folder / "0001.tar").unlink()
    with pytest.raises(FetchError, match=r"0001\.tar: .*no such file"):
        stream.ready(3, 8)
    stream.close()


def test_a_mistyped_template_is_forgotten_when_it_is_corrected(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [2, 3])
    with pytest.raises(DataError, match=r"none of its 2 shards has a row: .* needs the column rwo"):
        Stream(str(folder), cache, most=2, where=("row >= 1",), captions=("{rwo}",))
    stream = Stream(str(folder), cache, most=2, where=("row >= 1",), captions=("{row}",))
    assert stream.counts.tolist() == [1, 3]
    stream.close()


def test_the_counts_follow_the_templates(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [2, 3], "parquet", splits=("train", ""))
    for template, counts in (("{row}", [2, 3]), ("{split}", [1, 2])):
        stream = Stream(str(folder), cache, most=2, where=("row >= 0",), captions=(template,))
        assert stream.counts.tolist() == counts
        stream.close()


def test_damaged_shards_are_told_each_time_and_only_counts_are_kept(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [3])
    for kind in ("tar", "parquet"):
        place = write_shards(tmp_path / kind, [3, 2], kind)
        (place / f"0001.{kind}").write_bytes(b"neither a tar nor a Parquet file" * 100)
        for _ in range(2):
            with pytest.warns(UserWarning, match=rf"0001\.{kind}: .*, and is left out"):
                Stream(str(place), cache, most=2).close()
    kept = [json.loads(file.read_text())["rows"] for file in cache.glob("shards-*.json")]
    assert kept == [[3, ""]] * 2
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "0000.tar"), "/damaged/0000.tar")
    memory.pipe("/damaged/0001.tar", b"no tar" * 100)
    try:
        with pytest.warns(UserWarning, match=r"0001\.tar: .*, and is left out"):
            Stream("memory://damaged", cache, most=2).close()
    finally:
        memory.rm("/damaged", recursive=True)


def test_shards_that_the_conditions_leave_empty_are_counted_and_not_named(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [2, 3], "parquet")
    for _ in range(2):  # the second time by the kept counts
        stream = Stream(str(folder), cache, most=2, where=("row >= 3",), strict=True)
        assert stream.counts.tolist() == [2]
        assert dict(stream.unread.counted) == {"shard without a row that meets the conditions": 1}
        stream.close()
    with pytest.raises(DataError, match=r'none of its 2 shards has a row: .*no row is left by the condition "row > 9"'):
        Stream(str(folder), cache, most=2, where=("row > 9",))


def test_no_copy_is_left_by_counting(tmp_path: Path, cache: Path) -> None:
    stream = Stream(str(write_shards(tmp_path / "shards", [2, 3, 2])), cache, most=2, where=("row >= 1",))
    assert not [*stream._spool.folder.iterdir()]
    stream.close()


def test_a_full_disk_is_not_taken_for_a_damaged_shard(tmp_path: Path, cache: Path) -> None:
    stream = Stream(str(write_shards(tmp_path / "shards", [200])), cache, most=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a disk that is full, but for this process alone
    try:
        with pytest.raises(FetchError, match=r"0000\.tar: cannot be read or copied to .*file too large; see to it"):
            stream.ready(0, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not stream.unread.named
    assert stream.ready(0, 8).number == 0
    stream.close()


def test_a_split_in_a_column_holds_beside_patterns_to_exclude(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [4, 4, 4], "parquet", splits=("train", "test"))
    stream = Stream(str(folder), cache, most=3, split="train", exclude=("0002*",))
    assert stream.counts.tolist() == [2, 2]
    found = [stream.captions(stream.ready(row, 8).number) for row in range(4)]
    assert found == [[f"row {row}"] for row in (0, 2, 4, 6)]
    stream.close()


def test_a_split_that_all_names_say_is_found(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [2])
    (folder / "0000.tar").rename(folder / "val-0000.tar")
    stream = Stream(str(folder), cache, most=1, split="val")
    assert stream.counts.tolist() == [2]
    stream.close()


def test_patterns_to_exclude_hold_far_away(bucket: str) -> None:
    assert names(find_shards(bucket)) == ["0000.tar", "0001.tar", "0002.tar"]
    for pattern in ("drafts", "drafts/*", "0002.*"):
        assert names(find_shards(bucket, exclude=(pattern,))) == ["0000.tar", "0001.tar"]
    assert names(find_shards(f"{bucket}/*.tar", exclude=("0000*",))) == ["0001.tar"]
    assert names(find_shards(f"{bucket}/{{0000..0001}}.tar", exclude=("0000*",))) == ["0001.tar"]
    assert names(find_shards(bucket, exclude=("bucket", "pets"))) == ["0000.tar", "0001.tar", "0002.tar"]
    with pytest.raises(DataError, match=r"there are no \.tar or \.parquet files left by exclude"):
        find_shards(bucket, exclude=("*",))


def test_a_source_is_listed_once(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = list[str]()

    def listing(source: str, *given: Any, **more: Any) -> list[Shard] | None:
        listed.append(source)
        return find_shards(source, *given, **more)

    monkeypatch.setattr(f"{IN_STREAM}.find_shards", listing)
    Stream(bucket, cache, most=2, split="train").close()
    assert listed == [bucket]


def test_tars_far_away_are_read_through(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, real = set[str](), tarfile.open

    def watched(*given: Any, **more: Any) -> tarfile.TarFile:
        modes.add(more["mode"])
        return real(*given, **more)

    monkeypatch.setattr(tarfile, "open", watched)
    assert count_rows(find_shards(bucket) or (), cache, "", rows_in) == [3, 1, 4]
    assert modes == {"r|*"}


def test_shards_of_several_streams_are_opened_one_at_a_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [Stream(str(write_shards(tmp_path / name, [2])), cache, most=1) for name in ("one", "other")]
    lock, at_work = threading.Lock(), list[bool]()

    def watched(*given: Any, **more: Any) -> Any:
        alone = lock.acquire(blocking=False)
        at_work.append(alone)
        time.sleep(0.1)
        try:
            return open_source(*given, **more)
        finally:
            if alone:
                lock.release()

    monkeypatch.setattr(f"{IN_STREAM}.open_source", watched)
    with ThreadPoolExecutor(2) as pool:
        assert [row.number for row in pool.map(lambda stream: stream.ready(0, 8), streams)] == [0, 0]
    assert at_work == [True, True]
    for stream in streams:
        stream.close()


def test_the_fingerprint_follows_the_content_and_not_how_strictly_it_is_read(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "shards", [3])

    def fingerprint(**options: Any) -> str:
        stream = Stream(str(folder), cache, most=1, **options)
        stream.close()
        return stream.fingerprint

    first = fingerprint()
    assert fingerprint(strict=True) == first
    assert fingerprint(captions=("{row}",)) != first
    before = (folder / "0000.tar").read_bytes()
    (folder / "0000.tar").write_bytes(before.replace(b"row 1", b"row 7"))
    assert fingerprint() != first
