"""The same for all that workers do; each test starts workers anew, which takes seconds."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray_helpers import rows_of, working_processes

from codebrush.data.curation.clip_scorer import ClipScorer
from codebrush.data.curation.curate import curate
from codebrush.data.curation.options import CurationOptions
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.distributed import indexing as ray_indexing
from codebrush.distributed.cluster import Cluster
from codebrush.distributed.embedding import embed_engine
from codebrush.distributed.indexing import ray_engine
from codebrush.distributed.measuring import measure_on
from codebrush.distributed.workers import spread
from codebrush.errors import CodebrushError, DataError
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.search import indexing
from codebrush.search.database import Database, create_database
from codebrush.search.embedding import embed_pictures
from codebrush.search.index_report import IndexReport
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from search_helpers import EMBEDDER, write_scenes

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "BATCH", 8)
    monkeypatch.setattr("codebrush.search.embedding.BATCH", 8)
    monkeypatch.setattr("codebrush.data.curation.measures.CHUNK", 8)


def test_a_second_run_brings_a_database_up_to_date(cluster: Cluster, storage: str, clip: CLIP, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write_scenes(pictures, 20)

    def index(database: Database, engine: Any = None) -> IndexReport:
        return index_pictures(database, [open_pictures(str(pictures))], clip, engine=engine)

    alone = create_database(tmp_path / "db", EMBEDDER, clip.embed_dim)
    shared = create_database(f"{storage}/again", EMBEDDER, clip.embed_dim)
    assert index(alone) == index(shared, ray_engine(cluster))
    write_scenes(pictures, 5, first=100)  # new
    write_scenes(pictures, 3, captions=False, first=200)
    (pictures / "200.png").rename(pictures / "000.png")  # changed
    (pictures / "001.txt").write_text("another caption")
    (pictures / "002.png").unlink()
    both = [index(alone), index(shared, ray_engine(cluster))]
    assert (both[0].added, both[0].updated, both[0].removed) == (7, 2, 1)
    assert both[0] == both[1]
    assert rows_of(shared) == rows_of(alone)
    assert index(shared, ray_engine(cluster)).added == 0


@pytest.mark.parametrize(("commit_rows", "when"), [(50_000, 40), (8, 8)], ids=["one commit", "a commit for each batch"])
def test_what_another_process_wrote_meanwhile_is_not_there_twice(
    commit_rows: int,
    when: int,
    cluster: Cluster,
    storage: str,
    clip: CLIP,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_indexing, "COMMIT_ROWS", commit_rows)
    monkeypatch.setattr(Database, "settle", lambda self: False)  # what others wrote stays in its own files
    write_scenes(tmp_path / "pictures", 40)
    database = create_database(f"{storage}/second-{when}", EMBEDDER, clip.embed_dim)
    other = create_database(f"{storage}/second-{when}", EMBEDDER, clip.embed_dim)

    def index_half_elsewhere(done: int, total: int) -> None:
        if done == when:  # the workers have looked at all, or at the next batches, of which nothing is committed
            for path in sorted((tmp_path / "pictures").glob("*.png"))[::8]:
                index_pictures(other, [open_pictures(str(path))], clip)

    index_pictures(
        database, [open_pictures(str(tmp_path / "pictures"))], clip, index_half_elsewhere, engine=ray_engine(cluster)
    )
    paths = [row["path"] for row in rows_of(database)]
    assert len(paths) == len(set(paths)) == 40


def test_a_run_that_is_broken_off_keeps_what_is_done(cluster: Cluster, clip: CLIP, tmp_path: Path) -> None:
    write_scenes(tmp_path / "pictures", 48)
    database = create_database(tmp_path / "db", EMBEDDER, clip.embed_dim)

    def interrupt(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    def index(progress: Any = None) -> IndexReport:
        source = open_pictures(str(tmp_path / "pictures"))
        return index_pictures(database, [source], clip, progress, engine=ray_engine(cluster))

    with pytest.raises(KeyboardInterrupt):
        index(interrupt)
    assert database.count() == 16
    report = index()
    assert (report.added, report.unchanged) == (32, 16)
    assert ray_indexing.COMMIT_ROWS > 48


def test_embeddings_and_curations_are_the_same(cluster: Cluster, micro_pack: Path, tmp_path: Path) -> None:
    clip, tokenizer = open_clip(micro_pack)
    pictures = tmp_path / "pictures"
    write_scenes(pictures, 40)
    for name, engine in (("alone", None), ("shared", embed_engine(cluster))):
        (pictures / "broken.png").write_bytes(b"no picture")
        out = tmp_path / f"{name}.parquet"
        report = embed_pictures([open_pictures(str(pictures))], clip, EMBEDDER, out, engine=engine)
        assert (report.rows, len(report.skipped)) == (40, 1)
    alone, shared = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("alone", "shared"))
    assert alone.equals(shared, check_metadata=True)

    options, scorer = CurationOptions(keep_top=0.5), ClipScorer(clip, tokenizer)
    made = [
        curate(open_source(str(pictures)), tmp_path / "one", options, scorer),
        curate(open_source(str(pictures)), tmp_path / "two", options, scorer, engine=measure_on(cluster)),
    ]
    for report in made:
        del report["seconds"], report["path"], report["sheets"]
    assert made[0] == made[1]
    for path in (tmp_path / "one").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_strict_source_ends_the_run_with_its_own_error(cluster: Cluster, clip: CLIP, tmp_path: Path) -> None:
    write_scenes(tmp_path / "pictures", 10)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    source = open_pictures(str(tmp_path / "pictures"), strict=True)
    with pytest.raises(DataError, match=r"broken\.png"):
        embed_pictures([source], clip, EMBEDDER, tmp_path / "out.parquet", engine=embed_engine(cluster))
    assert not list(tmp_path.glob("*.parquet*"))


def dies_at_seven() -> type:
    """A worker that a certain piece of work always kills; a class of a function travels to workers as a whole."""

    class Worker:
        def work(self, item: int) -> int:
            if item == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            return item * item

    return Worker


def test_a_piece_that_kills_every_worker_ends_the_run(cluster: Cluster) -> None:
    def numbers() -> Iterator[int]:
        yield from range(20)

    done = list[tuple[int, int]]()
    with (
        pytest.warns(UserWarning, match="a worker died"),
        pytest.raises(CodebrushError, match="3 workers died at number 7: "),
    ):
        done.extend(spread(cluster, dies_at_seven(), (), numbers(), lambda item: f"number {item}"))


def test_an_index_of_5000_pictures_with_a_worker_killed(
    cluster: Cluster, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the built-in pack's CLIP and batches of the usual size; the figures are in docs/log.md."""
    monkeypatch.setattr(indexing, "BATCH", 256)
    write_shapes(tmp_path / "shapes", 5_000)
    clip, killed = open_clip("emoji")[0], list[int]()

    def kill_one(done: int, total: int) -> None:
        if not killed and done > 1_000:
            killed.append(working_processes()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    def index(database: Database, engine: Any = None, progress: Any = None) -> IndexReport:
        start = time.perf_counter()
        report = index_pictures(database, [open_pictures(str(tmp_path / "shapes"))], clip, progress, engine=engine)
        print(f"{database.place}: {report.added:,} added in {time.perf_counter() - start:.1f} seconds")
        return report

    alone = create_database(tmp_path / "db", EMBEDDER, clip.embed_dim)
    expected = index(alone)
    shared = create_database(f"{storage}/large", EMBEDDER, clip.embed_dim)
    with pytest.warns(UserWarning, match="a worker died and another takes its place"):
        report = index(shared, ray_engine(cluster), kill_one)
    assert killed
    assert report == expected
    assert report.added == 5_000
    assert rows_of(shared) == rows_of(alone)
    again = index(shared, ray_engine(cluster))
    assert (again.added, again.updated, again.removed, again.unchanged) == (0, 0, 0, 5_000)


def runs_out_of_memory() -> type:
    """A worker that has too little memory for any work."""

    class Worker:
        def work(self, item: int) -> int:
            raise MemoryError("no memory")

    return Worker


def test_an_error_of_a_worker_is_the_one_of_a_single_process(cluster: Cluster) -> None:
    with pytest.raises(MemoryError) as raised:
        list(spread(cluster, runs_out_of_memory(), (), iter(range(3)), str))
    assert type(raised.value) is MemoryError
    assert str(raised.value) == "no memory"


def test_a_cluster_without_a_free_gpu_is_waited_for_with_a_word(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.distributed.workers.PATIENCE", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # which ends the waiting
        with pytest.raises(UserWarning, match="no worker is ready after 1 seconds: the cluster may have no free GPU"):
            list(spread(Cluster(1, 64.0), runs_out_of_memory(), (), iter(range(3)), str))
