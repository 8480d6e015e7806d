"""`codebrush embed`, and the flags of the commands that can work on a Ray cluster."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from codebrush.cli.main import run
from codebrush.pack.pack import clip_hash, open_clip, open_pack
from codebrush.search.database import Embedder, create_database
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from search_helpers import write_scenes


def test_each_picture_has_the_embedding_that_it_has_in_a_database(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_scenes(tmp_path / "pictures", 5)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "new" / "embeddings.parquet"
    call = ["embed", str(tmp_path / "pictures"), "--out", str(out), "--pack", str(micro_pack)]
    assert run([*call, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["path"], report["rows"], len(report["skipped"])) == (str(out), 5, 1)
    table = pq.read_table(out)
    assert table["path"].to_pylist() == [str(path) for path in paths]
    assert table["caption"].to_pylist() == [path.with_suffix(".txt").read_text() for path in paths]
    assert set(table["width"].to_pylist()) == {16}
    about = json.loads(table.schema.metadata[b"codebrush"])
    assert about["clip"] == clip_hash(open_pack(micro_pack).member("clip"))

    clip = open_clip(micro_pack)[0]
    database = create_database(tmp_path / "db", Embedder("micro", about["clip"]), clip.embed_dim)
    index_pictures(database, [open_pictures(str(tmp_path / "pictures"))], clip)
    stored = {
        row["path"]: row["embedding"] for part in database.rows(["path", "embedding"]) for row in part.to_pylist()
    }
    expected = np.array([stored[str(path)] for path in paths])
    assert np.array_equal(np.array(table["embedding"].to_pylist()), expected)


def test_nothing_is_written_where_nothing_can_be_read_or_strict_forbids_it(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "embeddings.parquet", tmp_path / "pictures" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    call = ["embed", str(broken.parent), "--out", str(out), "--pack", str(micro_pack)]
    assert run(call) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "codebrush: nothing was embedded: none of the 1 pictures could be read"
    )
    write_scenes(broken.parent, 2)
    assert run([*call, "--strict"]) == 1
    assert str(broken) in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert run([*call[:-3], str(tmp_path / "embeddings.csv")]) == 2


@pytest.mark.parametrize("command", ["embed", "index", "curate"])
def test_the_flags_of_a_cluster(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "pictures", 2)
    target = {"embed": "--out", "index": "--db", "curate": "--out"}[command]
    call = [command, str(tmp_path / "pictures"), target, str(tmp_path / "new.parquet")]
    assert run([*call, "--workers", "2"]) == 2
    assert capsys.readouterr().err == "codebrush: --workers is for a cluster: add --engine ray\n"
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run([*call, "--engine", "ray"]) == 1
    assert capsys.readouterr().err == 'codebrush: --engine ray needs Ray: pip install "codebrush[cluster]"\n'
    assert not (tmp_path / "new.parquet").exists()


def test_a_cluster_that_does_not_answer_is_one_line(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    write_scenes(tmp_path / "pictures", 2)
    out = tmp_path / "new.parquet"
    call = ["embed", str(tmp_path / "pictures"), "--out", str(out), "--pack", str(micro_pack), "--engine", "ray"]
    assert run([*call, "--address", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == (
        "codebrush: no Ray cluster answers at 127.0.0.1:1 (connection refused): start one with ray start --head, "
        "or leave out --address\n"
    )
    assert not out.exists()
