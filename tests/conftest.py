"""What every test starts from: one thread, no network, the same random numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from packs import write_micro_pack

torch.set_num_threads(1)
# On a shared runner a change must not fail for an example that another change's run would have drawn as well.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test draws the same global random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger data beside the checkout; a test that asks for it is skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def micro_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with random weights; tests that change it make a copy."""
    return write_micro_pack(tmp_path_factory.mktemp("packs") / "micro")
