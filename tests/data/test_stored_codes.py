"""Codes on disk: equal to newly computed ones, computed once, and again if the file is damaged."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from codebrush.data.pixel_cache import PixelCache
from codebrush.data.stored_codes import encode_once
from codebrush.errors import CodebrushError
from codebrush.models.vqgan import VQGAN
from packs import micro_vqgan


@pytest.fixture
def vqgan() -> VQGAN:
    return micro_vqgan()


@pytest.fixture
def pixels() -> PixelCache:
    array = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    return PixelCache(array, tuple(range(70)), ())


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the encoder was for."""
    counts: list[int] = []
    encode = VQGAN.encode

    def count(vqgan: VQGAN, images: torch.Tensor) -> torch.Tensor:
        counts.append(len(images))
        return encode(vqgan, images)

    monkeypatch.setattr(VQGAN, "encode", count)
    return counts


def kinds(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()} - {".lock"}


def test_codes_are_those_of_the_network(vqgan: VQGAN, pixels: PixelCache, tmp_path: Path):
    found = encode_once(vqgan, pixels, tmp_path)
    assert (found.shape, found.dtype) == ((70, 64), np.uint16)
    for row in (0, 63, 64, 69):
        with torch.no_grad():
            expected = vqgan.quantize(vqgan.encode(pixels.batch([row]).float() / 255))[1]
        assert found[row].tolist() == expected.flatten().tolist()
    assert kinds(tmp_path) == {".npy"}


def test_codes_are_made_once_for_a_network_and_its_pictures(vqgan, pixels, tmp_path: Path, encoded: list[int]):
    first = encode_once(vqgan, pixels, tmp_path)
    assert np.array_equal(encode_once(vqgan, pixels, tmp_path), first)
    assert encoded == [64, 6]
    with torch.no_grad():
        next(iter(vqgan.encoder.parameters())).add_(1.0)
    assert not np.array_equal(encode_once(vqgan, pixels, tmp_path), first)
    assert encoded == [64, 6] * 2


@pytest.mark.parametrize("kept", [0, 40, 150, 4000])
def test_a_damaged_file_is_made_again(vqgan, pixels, tmp_path: Path, kept: int, encoded: list[int]):
    first = np.array(encode_once(vqgan, pixels, tmp_path))
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:kept])
    assert np.array_equal(encode_once(vqgan, pixels, tmp_path), first)
    assert encoded == [64, 6] * 2


def test_callers_at_the_same_time_encode_once(vqgan, pixels, tmp_path: Path, encoded: list[int]):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: encode_once(vqgan, pixels, tmp_path), range(3)))
    assert encoded == [64, 6]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_full_disk_is_one_line_and_leaves_nothing(vqgan: VQGAN, pixels: PixelCache, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))  # a longer file fails as on a full disk
    try:
        with pytest.raises(CodebrushError, match=f"cannot write codes in {tmp_path}") as caught:
            encode_once(vqgan, pixels, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "None" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kinds(tmp_path) == set()


def test_a_folder_in_the_way_is_named(vqgan: VQGAN, pixels: PixelCache, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CodebrushError, match=f"cannot write codes in {tmp_path / 'file'}"):
        encode_once(vqgan, pixels, tmp_path / "file")
