"""Several processes use one database, and one of them is killed."""

import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

from codebrush.pack.pack import open_clip
from codebrush.search import indexing
from codebrush.search.database import Embedder, create_database, open_database
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from codebrush.search.queries import search
from search_helpers import write_scenes

EMBEDDER = Embedder("micro", "a" * 64)


def index(pack: Path, db: Path, places: list[Path], parent: Connection) -> None:
    """Index in many small batches, each of which is reported to the parent."""
    torch.set_num_threads(1)
    indexing.BATCH = 16
    clip = open_clip(pack)[0]
    database = create_database(db, EMBEDDER, clip.embed_dim)
    parent.send("ready")
    parent.recv()
    pictures = [open_pictures(str(place)) for place in places]
    report = index_pictures(database, pictures, clip, lambda done, total: parent.send(done))
    parent.send((report.added, report.updated, report.unchanged))


Indexer = tuple[ForkServerProcess, Connection]


def start(processes: ForkServerContext, pack: Path, db: Path, *places: Path) -> Indexer:
    ours, its = processes.Pipe()
    process = processes.Process(target=index, args=(pack, db, list(places), its))
    process.start()
    its.close()
    assert ours.recv() == "ready"
    return process, ours


def last_message(connection: Connection) -> tuple[int, int, int]:
    """What the process reports at its end."""
    while not isinstance(message := connection.recv(), tuple):
        pass
    return message


def test_a_run_that_is_killed_loses_no_finished_batch(
    micro_pack: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    write_scenes(tmp_path / "pictures", 96)
    process, connection = start(processes, micro_pack, tmp_path / "db", tmp_path / "pictures")
    connection.send("go")
    while connection.recv() != 48:
        pass
    process.kill()  # SIGKILL, somewhere in the batches after the third
    process.join()
    assert process.exitcode == -9
    clip = open_clip(micro_pack)[0]
    database = open_database(tmp_path / "db", EMBEDDER)
    left = database.count()
    assert 48 <= left < 96
    assert left % 16 == 0
    assert database.count("embedding IS NULL OR thumbnail IS NULL OR hash IS NULL") == 0
    assert len(search(database, torch.eye(clip.embed_dim)[0], k=96)) == left
    shapes = ("circle", "square", "triangle", "star")
    rows = [row for batch in database.rows(["path", "caption"]) for row in batch.to_pylist()]
    expected = {row["path"] for row in rows if any(shape in row["caption"] for shape in shapes)}
    assert {hit.path for hit in search(database, None, " ".join(shapes), mode="text", k=96)} == expected
    report = index_pictures(database, [open_pictures(str(tmp_path / "pictures"))], clip)
    assert (report.added, report.updated, report.removed, report.unchanged) == (96 - left, 0, 0, left)


def test_two_index_while_a_third_searches(micro_pack: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    """Both processes get the same pictures first, and then different ones."""
    for number, place in enumerate(("both", "first", "second")):
        write_scenes(tmp_path / place, 32, first=32 * number)
    database = create_database(tmp_path / "db", EMBEDDER, open_clip(micro_pack)[0].embed_dim)
    places = [(tmp_path / "both", tmp_path / own) for own in ("first", "second")]
    started = [start(processes, micro_pack, tmp_path / "db", *each) for each in places]
    for _, connection in started:
        connection.send("go")
    counts = [0]
    while any(process.is_alive() for process, _ in started) and counts[-1] < 96:
        hits = search(database, torch.eye(database.embed_dim)[0], "circle", mode="hybrid", k=200)
        assert len({hit.path for hit in hits}) == len(hits)
        counts.append(len(hits))
        time.sleep(0.02)
    assert counts == sorted(counts)
    ends = [last_message(connection) for _, connection in started]
    assert sum(added for added, _, _ in ends) == 96  # each picture once, whichever process came first
    assert all(sum(end) == 64 for end in ends)
    paths = [path for batch in database.rows(["path"]) for path in batch["path"].to_pylist()]
    assert len(paths) == len(set(paths)) == 96
