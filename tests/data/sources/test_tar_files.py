"""Damaged and malicious tar files: they cost themselves from the damage on, and fill no memory."""

import bz2
import gzip
import io
import lzma
import resource
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from codebrush.data.sources.captioned_images import open_source
from codebrush.data.sources.shard_reader import read_shards
from codebrush.data.sources.unread import Unread
from codebrush.data.streaming.shards import Shard, rows_in
from codebrush.errors import DataError

PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf() + data + bytes(-len(data) % 512)


def header_of(kind: bytes, size: int, sparse: int = 0) -> bytes:
    """A header of 512 bytes that says what it likes."""
    header = tarfile.TarInfo("2.png")
    header.size = size
    made = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    made[156:157] = kind
    if sparse:  # one piece of no bytes, and the size of the whole
        made[386:410] = b"%011o\0%011o\0" % (0, 0)
        made[483:495] = b"\x80" + sparse.to_bytes(11, "big")
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


@pytest.fixture
def whole(picture: Callable[..., bytes]) -> bytes:
    return b"".join(member(f"{number}.png", picture()) + member(f"{number}.txt", b"a cat") for number in range(2))


def names(path: Path) -> tuple[list[str], list[str]]:
    unread = Unread("shard")
    return list(read_shards([(path, "")], unread)["__key__"]), [reason for _, reason in unread.named]


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("place", [-12, -5, -1])
def test_a_damaged_packed_shard_is_an_error_of_data(tmp_path: Path, whole: bytes, kind: str, place: int) -> None:
    data = bytearray(PACKED[kind](whole + bytes(1024)))
    data[place] ^= 0x55
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with suppress(DataError):  # of a shard that holds nothing whole
        found, reasons = names(path)
        assert set(found) <= {"0", "1"}
        assert reasons in (
            [],
            ["cut off or damaged after 1 whole sample"],
            ["cut off or damaged after 2 whole samples"],
        )


@pytest.mark.parametrize("size", [2 * 1024**3, 100 * 1024**3])
def test_a_sparse_member_does_not_fill_the_memory(tmp_path: Path, whole: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(whole + header_of(tarfile.GNUTYPE_SPARSE, 0, size) + member("3.txt", b"a dog") + bytes(1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert names(path) == (["0", "1", "3"], ["with it the sample is larger than 1 GB"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_what_states_a_size_and_has_no_content_costs_nothing(tmp_path: Path, whole: bytes, kind: bytes) -> None:
    """Some programs write the size of the file that a hard link leads to."""
    path = tmp_path / "a.tar"
    after = member("3.txt", b"a dog") + bytes(1024)
    path.write_bytes(whole + header_of(kind, 2 * 1024**2) + after)
    assert names(path) == (["0", "1", "3"], [])


def test_the_content_of_a_kind_that_is_not_known_is_passed_over(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.tar"
    after = member("3.txt", b"a dog") + bytes(1024)
    path.write_bytes(whole + header_of(b"V", 2 * 1024**2) + bytes(2 * 1024**2) + after)
    assert names(path) == (["0", "1", "3"], [])


@pytest.mark.parametrize(
    "kind",
    [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE],
)
@pytest.mark.parametrize("size", [7 * 1024**3, 2**70])
def test_a_header_of_any_size_is_not_read(tmp_path: Path, whole: bytes, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(whole + header_of(kind, size) + bytes(2048))
    assert names(path) == (["0", "1"], ["cut off or damaged after 2 whole samples"])
    path.write_bytes(header_of(kind, size) + bytes(2048))
    for read in (lambda: open_source(path), lambda: rows_in(Shard(str(path), 1))):
        with pytest.raises(DataError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_packed_header_is_not_unpacked(tmp_path: Path) -> None:
    """Gigabytes of zeros in a few kilobytes, said to be the name of the next member."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=9) as packed:
        packed.write(header_of(tarfile.GNUTYPE_LONGNAME, 400 * 1024**2))
        for _ in range(400):
            packed.write(bytes(1024**2))
    path = tmp_path / "a.tar"
    path.write_bytes(file.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError):
        open_source(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("cut", [0, 12, 100])
def test_a_map_of_a_sparse_file_that_is_cut_off_is_damage(tmp_path: Path, whole: bytes, cut: int) -> None:
    header = bytearray(header_of(tarfile.GNUTYPE_SPARSE, 0, 5))
    header[482] = 1  # the map goes on in the next block
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(whole + header + bytes(cut))
    assert names(path) == (["0", "1"], ["cut off or damaged after 2 whole samples"])
    path.write_bytes(header + bytes(cut))
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
