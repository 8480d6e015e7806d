"""Reading shards: values of JSON objects keep their types, and few objects are in memory at once."""

import gc
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from codebrush.data.sources import json_columns, shard_reader
from codebrush.data.sources.shard_reader import read_shards
from codebrush.data.sources.unread import Unread

ROWS = 300


@pytest.fixture
def write(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[[list[Any]], Path]:
    """A shard with a sample for each JSON object."""

    def make(objects: list[Any]) -> Path:
        with tarfile.open(tmp_path / "a.tar", "w") as shard:
            for number, value in enumerate(objects):
                for ending, data in (("png", picture()), ("json", json.dumps(value).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
        return tmp_path / "a.tar"

    return make


def columns(dataset: Dataset) -> dict[str, list[Any]]:
    return {name: list(dataset[name]) for name in dataset.column_names if name not in ("image", "__key__")}


@pytest.mark.parametrize("batch", [1, 2, 1000])
@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        ([None, 3, None, 2.5], "double", [None, 3.0, None, 2.5]),
        ([1, None, 2, 2**62], "int64", None),
        ([None, None, None, "a"], "string", None),
        ([True, None, False, None], "bool", None),
        ([[], None, ["a", "b"], []], "list<element: string>", None),
        ([{"a": 1}, {"b": "x"}, None, {}], "struct<a: int64, b: string>", [(1, None), (None, "x"), None, (None, None)]),
        ([1, "a", 2.5, None], "string", ["1", "a", "2.5", None]),
        ([1, "a", 2.5, [3]], "list<element: string>", [["1"], ["a"], ["2.5"], ["3"]]),
        (["a", ["b", "c"], None, {"d": 1}], "list<element: string>", [["a"], ["b", "c"], None, ['{"d": 1}']]),
        (["cut \ud83d", "a", None, "b"], "string", ["cut \ufffd", "a", None, "b"]),
        (["a", True, None, {"b": "c"}], "string", ["a", "true", None, '{"b": "c"}']),
        ([2.5, 2**60 + 1, None, 1], "string", ["2.5", str(2**60 + 1), None, "1"]),
        ([1, 2**64, None, 1], "string", ["1", str(2**64), None, "1"]),
        ([None, None, None, None], "null", None),
    ],
)
def test_a_column_has_the_type_that_holds_all_its_cells(
    write: Callable[[list[Any]], Path],
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    cells: list[Any],
    kind: str,
    expected: list[Any] | None,
):
    """However many objects are read at once."""
    monkeypatch.setattr(json_columns, "BATCH", batch)
    dataset = read_shards(
        [(write([{"x": cell, "image": "mine", "__key__": 1} for cell in cells]), "")], Unread("shard")
    )
    found = [tuple(cell.values()) if isinstance(cell, dict) else cell for cell in dataset["x"]]
    assert found == (cells if expected is None else expected)
    assert str(dataset.data.column("x").type).replace("item:", "element:") == kind
    assert list(dataset["__key__"]) == ["0000", "0001", "0002", "0003"]


def test_objects_may_have_other_keys_or_be_none(write: Callable[[list[Any]], Path]):
    unread = Unread("shard")
    path = write([{"a": 1}, {"b": "x", "split": "val"}, [1], {}])
    dataset = read_shards([(path, "train")], unread)
    assert columns(dataset) == {
        "a": [1, None, None, None],
        "b": [None, "x", None, None],
        "split": [None, "val", None, None],
    }
    assert unread.named == [(f"{path}: 0002.json", "not a JSON object")]
    assert columns(read_shards([(write([{}, 3, True]), "train")], unread)) == {"split": ["train"] * 3}


def test_few_objects_are_in_memory_at_once(write: Callable[[list[Any]], Path], monkeypatch: pytest.MonkeyPatch):
    """And the columns do not stay in memory."""
    now = most = 0

    class Counted(dict[str, Any]):
        def __init__(self, values: dict[str, Any]) -> None:
            nonlocal now, most
            super().__init__(values)
            now += 1
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= 1

    real = json.loads

    def loads(text: str, **options: Any) -> Any:
        return Counted(value) if "words" in (value := real(text, **options)) else value

    monkeypatch.setattr(json, "loads", loads)
    monkeypatch.setattr(json_columns, "BATCH", 10)
    path = write([{"n": number, "words": f"{number:01000d}"} for number in range(ROWS)])
    gc.collect()
    before = pa.total_allocated_bytes()
    dataset = read_shards([(path, "")], Unread("shard"))
    gc.collect()
    assert list(dataset["n"]) == list(range(ROWS))
    assert 10 <= most <= 30
    assert pa.total_allocated_bytes() - before < 100 * ROWS


def test_few_members_of_a_shard_are_in_memory_at_once(write: Callable[[list[Any]], Path]):
    path = write([{"n": number} for number in range(ROWS)])
    samples = shard_reader._samples([(str(path), "")])
    for _ in range(ROWS - 1):
        next(samples)
    assert sum(type(each) is tarfile.TarInfo for each in gc.get_objects()) < 10
    assert [sample["__key__"] for sample in samples] == [f"{ROWS - 1:04d}"]


def test_columns_are_made_once(write: Callable[[list[Any]], Path]):
    """A shard that is opened again is not written to the cache again."""
    path = write([{"n": 1}, {"n": 2.5}])
    first, second = (read_shards([(path, "")], Unread("shard")).cache_files for _ in range(2))
    assert first == second
    assert len(first) == 2
