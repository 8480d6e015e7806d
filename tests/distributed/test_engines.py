"""What engines send to workers and make of their results. Here the worker is in this process, but in another folder, as
those of a cluster that was joined; `test_ray` has real ones.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from ray_helpers import rows_of

from codebrush.data.sources.unread import Unread
from codebrush.distributed import embedding as ray_embedding
from codebrush.distributed import indexing as ray_indexing
from codebrush.distributed.cluster import Cluster
from codebrush.models.clip import CLIP
from codebrush.search import indexing
from codebrush.search.database import create_database
from codebrush.search.embedding import embed_pictures
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from search_helpers import EMBEDDER, write_scenes

CLUSTER = Cluster(1, 0.0)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is sent to the worker. The working folder is an empty one."""
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("lance", reason="pylance is not installed")
    items, elsewhere, here = list[Any](), tmp_path / "elsewhere", tmp_path / "here"

    def spread(cluster: Cluster, kind: Any, arguments: Any, work: Iterator[Any], name: Any) -> Iterator[Any]:
        with chdir(elsewhere):
            worker = kind(*arguments)
        for item in work:
            items.append(pickle.loads(pickle.dumps(item)))
            with chdir(elsewhere):
                part = worker.work(items[-1])
            yield item, part

    for engine in (ray_indexing, ray_embedding):
        monkeypatch.setattr(engine, "spread", spread)
    monkeypatch.setattr("ray.put", lambda thing: thing)
    monkeypatch.setattr(indexing, "BATCH", 8)
    elsewhere.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    return items


def test_a_relative_database_is_the_one_of_this_folder_although_workers_have_another(
    sent: list[Any], clip: CLIP, tmp_path: Path
) -> None:
    write_scenes(Path("pictures"), 3)
    create_database(tmp_path / "elsewhere" / "db", EMBEDDER, clip.embed_dim)
    database = create_database("db", EMBEDDER, clip.embed_dim)
    index_pictures(database, [open_pictures("pictures")], clip, engine=ray_indexing.ray_engine(CLUSTER))
    assert sent
    assert [os.path.basename(row["path"]) for row in rows_of(database)] == ["000.png", "001.png", "002.png"]


def test_the_report_counts_what_another_process_added_meanwhile_as_its_own(sent: list[Any], clip: CLIP) -> None:
    pictures = write_scenes(Path("pictures"), 20)
    database = create_database("db", EMBEDDER, clip.embed_dim)
    other = create_database("db", EMBEDDER, clip.embed_dim)

    def index_some_elsewhere(done: int, total: int) -> None:
        if done == 8:
            index_pictures(other, [open_pictures(str(path)) for path in pictures[:5]], clip)

    engine = ray_indexing.ray_engine(CLUSTER)
    report = index_pictures(database, [open_pictures("pictures")], clip, index_some_elsewhere, engine=engine)
    assert (report.added, report.unchanged) == (15, 5)
    assert len(rows_of(database)) == database.count() == 20


def test_what_a_source_could_not_read_does_not_travel_with_each_batch(sent: list[Any], clip: CLIP) -> None:
    write_scenes(Path("pictures"), 3)
    sources = [open_pictures("pictures", strict=True) for _ in range(2)]  # one is read once
    for source in sources:
        source.unread.named += [(f"picture {number}", "damaged") for number in range(1_000)]
    database = create_database("db", EMBEDDER, clip.embed_dim)
    index_pictures(database, sources[:1], clip, engine=ray_indexing.ray_engine(CLUSTER))
    embed_pictures(sources[1:], clip, EMBEDDER, Path("out.parquet"), engine=ray_embedding.embed_engine(CLUSTER))
    assert [sent[0].unread, sent[1][1].unread] == [Unread(sources[0].unread.origin, strict=True)] * 2
