"""A database on object storage: the same as in a folder, also with two writers at once, and one line for what fails."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from codebrush.cli.main import run
from codebrush.errors import CodebrushError, DataError
from codebrush.pack.pack import open_clip
from codebrush.search.database import Database, create_database, open_database
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from codebrush.search.places import Folder, Storage, place_of
from codebrush.search.queries import search
from search_helpers import EMBEDDER, unit, write_scenes

WIDTH, WRITES, ROWS = 4, 6, 8


def test_a_table_with_columns_of_other_names_is_indexed_searched_and_discarded(
    storage: str, micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEBRUSH_HOME", str(tmp_path / "home"))
    clip = open_clip(micro_pack)[0]
    files = [path.read_bytes() for path in write_scenes(tmp_path / "pictures", 6)]
    columns = {"image": files, "text": [f"picture {row}" for row in range(6)], "Art des Bildes": ["Form"] * 6}
    pq.write_table(pa.table(columns), tmp_path / "pictures.parquet")
    source = str(tmp_path / "pictures.parquet")
    databases = [create_database(place, EMBEDDER, clip.embed_dim) for place in (tmp_path / "db", f"{storage}/columns")]
    reports = [index_pictures(database, [open_pictures(source)], clip) for database in databases]
    assert reports[0] == reports[1]
    assert reports[0].added == 6
    reopened = [open_database(str(database.place), EMBEDDER) for database in databases]
    assert [database.source_names() for database in reopened] == [{"Art des Bildes": ["Art_des_Bildes"]}] * 2
    asked = torch.eye(clip.embed_dim)[0]
    found = [search(database, asked, k=6, where="Art_des_Bildes = 'Form'") for database in reopened]
    assert [(hit.path, hit.score) for hit in found[0]] == [(hit.path, hit.score) for hit in found[1]]
    assert len(found[0]) == 6
    for database in databases:
        database.delete([hit.path for hit in found[0]])
        database.discard()
        with pytest.raises(DataError, match=r"there is no database in .*: make one with codebrush index"):
            open_database(str(database.place))


def test_two_writers_of_the_same_pictures_leave_each_once(storage: str) -> None:
    """There is no lock, so that LanceDB must notice it; without a key in the table some are there twice."""
    place, together = f"{storage}/two", Barrier(2)
    create_database(place, EMBEDDER, WIDTH)

    def write(seed: int) -> int:
        database, draw, added = open_database(place), np.random.default_rng(seed), 0
        together.wait()
        for number in range(WRITES):
            added += database.write(rows(database, number, unit(draw.normal(size=(ROWS, WIDTH)))))[0]
        return added

    with ThreadPoolExecutor(2) as threads:
        added = list(threads.map(write, range(2)))
    paths = [path for part in open_database(place).rows(["path"]) for path in part["path"].to_pylist()]
    assert len(paths) == len(set(paths)) == sum(added) == WRITES * ROWS


def rows(database: Database, number: int, vectors: np.ndarray) -> pa.Table:
    flat = pa.array(vectors.reshape(-1))
    schema = pa.schema([database.table.schema.field(name) for name in ("path", "embedding")])
    paths = pa.array([f"{number}-{row}" for row in range(len(vectors))])
    return pa.table([paths, pa.FixedSizeListArray.from_arrays(flat, WIDTH)], schema=schema)


def test_what_the_store_refuses_is_one_line(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CodebrushError, match=r"cannot use s3://nobody/x: .*bucket does not exist \(NoSuchBucket\)"):
        create_database("s3://nobody/x", EMBEDDER, WIDTH)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LANCE_CLIENT_MAX_RETRIES", "0")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "0")
    assert run(["search", "a cat", "--db", f"{storage}/x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"codebrush: cannot use {storage}/x: it does not answer (connection refused); check")


@pytest.mark.parametrize(
    ("called", "kind", "name"),
    [
        ("s3://bucket/a/", Storage, "s3://bucket/a"),
        (Path("s3://bucket/a"), Storage, "s3://bucket/a"),
        ("gs://bucket", Storage, "gs://bucket"),
        ("photos.db", Folder, "photos.db"),
        ("s3/photos", Folder, "s3/photos"),
        ("ftp://host/a", Folder, "ftp:/host/a"),
    ],
)
def test_an_address_is_told_from_a_folder(called: str | Path, kind: type, name: str) -> None:
    place = place_of(called)
    assert isinstance(place, kind)
    assert str(place) == name


@pytest.mark.parametrize(
    "said",
    [
        "Retryable commit conflict for version 7: This transaction was preempted by a concurrent one",
        "Too much write contention: attempted 20 times",
        "Incompatible transaction: This transaction is incompatible with concurrent transaction UpdateConfig",
    ],
)
def test_a_writer_that_came_second_is_not_told_that_the_database_is_damaged(said: str) -> None:
    fault = Storage("s3://bucket/pictures").fault(RuntimeError(f"lance error: {said} at version 6, /a/b.rs:1:2"))
    assert str(fault) == "another process wrote to s3://bucket/pictures at the same time: run the command again"
