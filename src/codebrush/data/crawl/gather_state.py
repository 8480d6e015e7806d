"""Keeps on disk what has been fetched of each slice of a list of URLs, and writes a complete slice as a shard.

.gather/00012/     pictures of an incomplete slice, each with its columns in a .json beside it
.gather/00012.json how many rows are done, their hash, how many shards they have, and the rows that failed

The shard is written first, then the .json, then the pictures are deleted: wherever a run stops, the next one writes the
same shard again or continues after it.
"""

import hashlib
import json
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from codebrush.data.crawl.fetcher import FetchError
from codebrush.data.crawl.url_lists import UrlRow
from codebrush.data.sources.shard_writer import TarShard
from codebrush.errors import DataError
from codebrush.files import atomic_file

STATE_FOLDER = ".gather"


class Slice:
    """The rows `start` to `start + len(entries) - 1` of a list, fetched into the folder `out`.

    Rows that failed for one of the reasons `retried` count as missing, even if a retry seemed useless then.

    Raises:
        DataError: if `out` holds other rows under this number.
    """

    def __init__(
        self, out: Path, number: int, start: int, entries: Sequence[UrlRow], retried: Container[str] = ()
    ) -> None:
        self.out, self.number, self.start, self.entries, self.retried = out, number, start, entries, retried
        self._parts = out / STATE_FOLDER / f"{number:05d}"
        self._path = self._parts.with_suffix(".json")
        self._state: dict[str, Any] = {"rows": 0, "sha256": _hash(()), "shards": 0, "failed": []}
        if self._path.exists():
            self._state = _read(self._path)
        rows = self._state["rows"]
        if len(entries) < rows or _hash(entries[:rows]) != self._state["sha256"]:
            raise DataError(f"{out}: holds pictures of another list; name a new folder")

    @staticmethod
    def states(out: Path) -> Iterator[dict[str, Any]]:
        """The stored state of each slice that was processed, in order."""
        for path in sorted((out / STATE_FOLDER).glob("[0-9]*.json")):
            yield _read(path)

    def missing(self) -> list[int]:
        """The rows without a picture that are worth a try."""
        again = [failure["row"] for failure in self._state["failed"] if self._may_pass(failure)]
        return [*again, *range(self.start + self._state["rows"], self.start + len(self.entries))]

    def has(self, row: int) -> bool:
        """Whether a run that was stopped has stored the picture of a row."""
        return self._columns(row) is not None

    def put(self, row: int, ending: str, picture: bytes, columns: Mapping[str, Any]) -> None:
        """Store a picture until the slice is complete."""
        self._parts.mkdir(exist_ok=True)
        (self._parts / f"{row:09d}.{ending}").write_bytes(picture)
        with atomic_file(self._parts / f"{row:09d}.json") as part:  # last, because it vouches for the picture
            part.write_text(json.dumps({**columns, "ending": ending}, ensure_ascii=False), encoding="utf-8")

    def finish(self, failed: Mapping[int, FetchError]) -> int:
        """Write the new pictures as a shard and record the rows that failed; how many are new."""
        rows = [row for row in self.missing() if row not in failed]
        if rows:
            again = f"-{self._state['shards']}" if self._state["shards"] else ""
            with atomic_file(self.out / f"{self.number:05d}{again}.tar") as part, closing(TarShard(part)) as shard:
                for row in rows:
                    columns = self._columns(row)
                    assert columns is not None, f"row {row} has neither a picture nor a reason"
                    picture = (self._parts / f"{row:09d}.{columns.pop('ending')}").read_bytes()
                    shard.add(f"{row:09d}", picture, [columns["caption"]], columns)
        self._write_state(failed, bool(rows))
        shutil.rmtree(self._parts, ignore_errors=True)
        return len(rows)

    def _write_state(self, failed: Mapping[int, FetchError], has_shard: bool) -> None:
        final = [failure for failure in self._state["failed"] if not self._may_pass(failure)]
        new = [
            {
                "row": row,
                "url": self.entries[row - self.start].url,
                "reason": error.reason,
                "detail": error.detail,
                "again": error.again,
            }
            for row, error in failed.items()
        ]
        state = {
            "rows": len(self.entries),
            "sha256": _hash(self.entries),
            "shards": self._state["shards"] + has_shard,
            "failed": sorted([*final, *new], key=lambda failure: failure["row"]),
        }
        with atomic_file(self._path) as part:
            part.write_text(json.dumps(state), encoding="utf-8")

    def _may_pass(self, failure: Mapping[str, Any]) -> bool:
        return failure["again"] or failure["reason"] in self.retried

    def _columns(self, row: int) -> dict[str, Any] | None:
        """The columns of a row whose picture is stored here; None if there is none, or one of another list."""
        try:
            columns = json.loads((self._parts / f"{row:09d}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        entry = self.entries[row - self.start]
        return columns if (columns["url"], columns["caption"]) == (entry.url, entry.caption) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged; gather into a new folder") from error


def _hash(entries: Sequence[UrlRow]) -> str:
    digest = hashlib.sha256()
    for row in entries:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()
