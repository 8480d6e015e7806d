import itertools
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush.data.decoding.images import resize_square
from codebrush.data.pixel_cache import decode_once
from codebrush.data.sources.captioned_images import open_source
from codebrush.errors import CodebrushError, DataError

BROKEN = (0, 5, 11)


@pytest.fixture
def source(folder):
    """Twelve captioned files: nine noise pictures, and three that cannot be read."""
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        path = folder / f"{index:02d}.png"
        Image.fromarray(noise).save(path)
        if index in BROKEN:
            path.write_bytes(path.read_bytes()[: 500 * (index > 0)])
    return open_source(folder, captions=["x"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("codebrush.data.pixel_cache.CHUNK", 4)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The size that each picture was resized to, in order."""
    found = []

    def resize(image, size):
        found.append(size)
        return resize_square(image, size)

    monkeypatch.setattr("codebrush.data.pixel_cache.resize_square", resize)
    return found


def names(place) -> set[str]:
    return {path.suffix for path in place.iterdir()} if place.exists() else set()


def test_readable_rows_are_kept_in_order_and_others_named(source, tmp_path):
    cache = decode_once(source, 8, tmp_path / "cache")
    assert cache.rows == (1, 2, 3, 4, 6, 7, 8, 9, 10)
    assert [name for name, _ in cache.skipped] == ["00.png", "05.png", "11.png"]
    assert [reason.split(":")[0][:13] for _, reason in cache.skipped] == ["the file is e"] + ["cannot be dec"] * 2
    assert len(cache) == 9
    assert cache.pixels.shape == (9, 8, 8, 3)
    for place, row in enumerate(cache.rows):
        assert cache.pixels[place].tobytes() == resize_square(source.image(row), 8).tobytes()


def test_strict_names_the_first_that_cannot_be_read_also_of_an_earlier_run(source, folder, tmp_path):
    decode_once(source, 8, tmp_path / "old")
    for cache in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(DataError, match=r"^00\.png: the file is empty"):
            decode_once(open_source(folder, captions=["x"], strict=True), 8, cache)


@pytest.mark.parametrize("indices", [[3, 0, 3], np.array([3, 0, 3]), torch.tensor([3, 0, 3])])
def test_batch_is_by_place_in_the_cache(source, tmp_path, indices):
    cache = decode_once(source, 8, tmp_path / "cache")
    batch = cache.batch(indices)
    assert batch.shape == (3, 3, 8, 8)
    assert batch.dtype == torch.uint8
    expected = np.asarray(resize_square(source.image(4), 8)).transpose(2, 0, 1)
    assert np.array_equal(batch[0].numpy(), expected)
    assert torch.equal(batch[0], batch[2])


def test_a_second_call_reuses_what_is_there(source, tmp_path, decoded):
    first = decode_once(source, 8, tmp_path / "cache")
    assert decoded == [8] * 9
    again = decode_once(source, 8, tmp_path / "cache")
    assert decoded == [8] * 9
    assert (again.rows, again.skipped) == (first.rows, first.skipped)
    assert np.array_equal(again.pixels, first.pixels)


def test_another_size_or_other_rows_are_decoded_anew(source, folder, tmp_path):
    decode_once(source, 8, tmp_path / "cache")
    assert decode_once(source, 16, tmp_path / "cache").pixels.shape == (9, 16, 16, 3)
    Image.new("RGB", (20, 20), "red").save(folder / "01.png")
    changed = decode_once(open_source(folder, captions=["x"]), 8, tmp_path / "cache")
    assert changed.pixels[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("at", [1, 5, 9])
def test_an_interruption_leaves_nothing_and_the_next_call_finishes(source, tmp_path, monkeypatch, at):
    count = itertools.count(1)

    def interrupt(image, size):
        if next(count) == at:
            raise KeyboardInterrupt
        return resize_square(image, size)

    monkeypatch.setattr("codebrush.data.pixel_cache.resize_square", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_once(source, 8, tmp_path / "cache")
    assert names(tmp_path / "cache") <= {".lock"}
    assert len(decode_once(source, 8, tmp_path / "cache")) == 9
    assert names(tmp_path / "cache") - {".lock"} == {".npy", ".json"}


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"half"])
def test_a_damaged_cache_is_made_again(source, tmp_path, suffix, content):
    decode_once(source, 8, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob(f"*{suffix}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:150] if content == b"half" else content)
    assert len(decode_once(source, 8, tmp_path / "cache")) == 9


def test_callers_at_the_same_time_decode_once(source, tmp_path, decoded):
    def decode(_):
        return decode_once(source, 8, tmp_path / "cache")

    with ThreadPoolExecutor(4) as pool:
        caches = list(pool.map(decode, range(4)))
    assert {cache.rows for cache in caches} == {caches[0].rows}
    assert len(decoded) == 9


def test_nothing_readable_is_an_error_that_names_the_first(folder, tmp_path):
    for name in ("a", "b"):
        (folder / f"{name}.png").write_text("words")
    with pytest.raises(DataError, match=r"none of its 2 pictures can be read; a\.png: not a picture"):
        decode_once(open_source(folder, captions=["x"]), 8, tmp_path / "cache")
    assert names(tmp_path / "cache") <= {".lock"}


def test_unwritable_folder_is_named(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CodebrushError, match=f"cannot write decoded pictures in {tmp_path / 'file'}"):
        decode_once(source, 8, tmp_path / "file")


def test_full_disk_is_an_error_and_leaves_nothing(source, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a longer file fails as on a full disk
    try:
        with pytest.raises(CodebrushError, match="cannot write decoded pictures"):
            decode_once(source, 64, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "cache") <= {".lock"}
