"""New rows are in the table once, whatever goes wrong while they are added, and whoever writes at the same time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codebrush.errors import CodebrushError
from codebrush.search.database import Database
from search_helpers import database_of

lance = pytest.importorskip("lance", reason="pylance is not installed")

from codebrush.distributed.commits import Commits  # noqa: E402


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return database_of(tmp_path / "db", np.eye(2, dtype=np.float32))


def append(database: Database, paths: list[str], commits: Commits) -> None:
    """Write rows as a worker does, and hand them to `commits`."""
    import pyarrow as pa
    from lance.fragment import write_fragments

    rows = pa.table({"path": pa.array(paths)}, schema=pa.schema([database.table.schema.field("path")]))
    written = write_fragments(rows, lance.dataset(database.place.address), mode="append")
    commits.add(paths, [json.dumps(each.to_json()) for each in written])


def paths_of(database: Database) -> list[str]:
    return sorted(path for part in database.rows(["path"]) for path in part["path"].to_pylist())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("Commit conflict for version 3")])
@pytest.mark.parametrize("name", ["commit", "delete"])
@pytest.mark.parametrize("merges", [False, True], ids=["", "merged meanwhile"])
def test_an_error_after_rows_were_added_adds_them_only_once(
    name: str, error: BaseException, merges: bool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, other = Commits(database), Commits(database)
    append(database, ["a", "b"], commits)
    append(database, ["b"], other)
    other.commit()
    real = getattr(lance.LanceDataset, name)

    def fails(*arguments: Any, **named: Any) -> Any:
        if name == "commit":
            real(*arguments, **named)
        if merges:
            database.table.optimize()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, name, staticmethod(fails) if name == "commit" else fails)
        with pytest.raises(type(error) if isinstance(error, KeyboardInterrupt) else Exception):
            commits.commit()
    commits.commit()
    assert paths_of(database) == ["0", "1", "a", "b"]
    assert commits.twins == 1
    commits.commit()
    append(database, ["c"], commits)
    commits.commit()
    assert paths_of(database) == ["0", "1", "a", "b", "c"]


def test_files_that_are_merged_before_twins_are_deleted_leave_none(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, other = Commits(database), Commits(database)
    append(database, ["a", "b"], commits)
    append(database, ["b", "c"], other)
    other.commit()
    real, merged = lance.LanceDataset.delete, list[bool]()

    def deletes(*arguments: Any, **named: Any) -> Any:
        if not merged:
            merged.append(True)
            database.table.optimize()
        return real(*arguments, **named)

    monkeypatch.setattr(lance.LanceDataset, "delete", deletes)
    commits.commit()
    assert merged
    assert paths_of(database) == ["0", "1", "a", "b", "c"]
    assert (commits.twins, other.twins) == (1, 0)


def test_rows_that_workers_wrote_into_another_folder_do_not_damage_the_table(database: Database) -> None:
    commits = Commits(database)
    append(database, ["a"], commits)
    written = json.loads(commits.fragments[0])["files"][0]["path"]
    (Path(database.place.address) / "data" / written).unlink()
    with pytest.raises(CodebrushError, match="into another folder: it must be one that all machines share"):
        commits.commit()
    assert paths_of(database) == ["0", "1"]
