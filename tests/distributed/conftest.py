"""One cluster of two workers for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from codebrush.distributed.cluster import Cluster, joined
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("lance", reason="pylance is not installed")
    with joined("local", 2) as started:
        yield started


@pytest.fixture(scope="session")
def clip(micro_pack: Path) -> CLIP:
    return open_clip(micro_pack)[0]
