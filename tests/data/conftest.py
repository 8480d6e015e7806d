"""Fixtures of the data layer's tests: small pictures, and a temporary cache for `datasets`."""

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image


@pytest.fixture(autouse=True, scope="session")
def _throwaway_cache(tmp_path_factory: pytest.TempPathFactory):
    kept = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = kept


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """The bytes of a small picture file of one colour."""

    def make(colour: str = "red", kind: str = "PNG", size: tuple[int, int] = (9, 7)) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pets"
    made.mkdir()
    return made
