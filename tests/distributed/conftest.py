"""One cluster of two workers and one storage server for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_server import BUCKET, storage_server

from codebrush.distributed.cluster import Cluster, joined
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip


@pytest.fixture(scope="session")
def storage() -> Iterator[str]:
    """The address of an empty bucket; the environment has what reaches it."""
    with storage_server() as variables, pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def cluster(storage: str) -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("lance", reason="pylance is not installed")
    with joined("local", 2) as started:
        yield started


@pytest.fixture(scope="session")
def clip(micro_pack: Path) -> CLIP:
    return open_clip(micro_pack)[0]
