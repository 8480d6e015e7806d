"""What the training tests share: drawn scenes in a folder and a throwaway cache of `datasets`."""

from pathlib import Path

import datasets
import pytest

from codebrush.data.synthetic.scene_folder import write_shapes


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory):
    kept = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = kept


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty captioned scenes of one shape, 32 x 32."""
    folder = tmp_path_factory.mktemp("source") / "shapes"
    write_shapes(folder, 40, size=32, objects=1)
    return folder
