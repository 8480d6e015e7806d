"""Workers on Ray do the same work as one process, also on object storage and when one of them is killed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ray_helpers import rows_of, working_processes

from codebrush.distributed.cluster import Cluster
from codebrush.distributed.indexing import ray_engine
from codebrush.models.clip import CLIP
from codebrush.search import indexing
from codebrush.search.database import Database, create_database
from codebrush.search.index_report import IndexReport
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from search_helpers import EMBEDDER, write_scenes

pytestmark = pytest.mark.slow  # starts a cluster; test_engines has what goes to workers and comes back


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "BATCH", 8)


def test_an_index_on_storage_is_the_one_of_a_single_process_although_a_worker_is_killed(
    cluster: Cluster, storage: str, clip: CLIP, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    write_scenes(pictures, 60)
    (pictures / "broken.png").write_bytes(b"no picture")
    killed = list[int]()

    def kill_one(done: int, total: int) -> None:
        if not killed:
            killed.append(working_processes()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    def index(database: Database, engine: Any = None, progress: Any = None) -> IndexReport:
        return index_pictures(database, [open_pictures(str(pictures))], clip, progress, engine=engine)

    alone = create_database(tmp_path / "db", EMBEDDER, clip.embed_dim)
    expected = index(alone)
    shared = create_database(f"{storage}/first", EMBEDDER, clip.embed_dim)
    with pytest.warns(UserWarning, match="a worker died and another takes its place"):
        report = index(shared, ray_engine(cluster), kill_one)
    assert killed
    assert report == expected
    assert rows_of(shared) == rows_of(alone)
    assert len(rows_of(shared)) == 60
