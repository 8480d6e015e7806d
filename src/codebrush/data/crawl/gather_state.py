"""One slice of a list of URLs in; what earlier runs have fetched of it, and the shard that a run adds, out.

.gather/00012/     pictures of a slice that is not whole yet, each with its columns in a .json beside it
.gather/00012.json how many rows are done, their hash, how many shards they have, and the rows that failed

A shard gets its name first, then the .json tells of it, then the pictures go: wherever a run stops, the next one writes
the same shard once more or goes on after it.
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
    """The rows `start` to `start + len(listed) - 1` of a list, gathered in the folder `out`.

    Rows that failed for one of the reasons `mended` are missing again, whatever was said then. Raises DataError where
    what has been gathered is of other rows.
    """

    def __init__(
        self, out: Path, number: int, start: int, listed: Sequence[UrlRow], mended: Container[str] = ()
    ) -> None:
        self.out, self.number, self.start, self.listed, self.mended = out, number, start, listed, mended
        self._parts = out / STATE_FOLDER / f"{number:05d}"
        self._path = self._parts.with_suffix(".json")
        self._state: dict[str, Any] = {"rows": 0, "sha256": _hash(()), "shards": 0, "failed": []}
        if self._path.exists():
            self._state = _read(self._path)
        rows = self._state["rows"]
        if len(listed) < rows or _hash(listed[:rows]) != self._state["sha256"]:
            raise DataError(f"{out}: holds pictures of another list; name a new folder")

    @staticmethod
    def states(out: Path) -> Iterator[dict[str, Any]]:
        """What is known of each slice that has been worked off, in order."""
        for path in sorted((out / STATE_FOLDER).glob("[0-9]*.json")):
            yield _read(path)

    def missing(self) -> list[int]:
        """The rows without a picture that another try may get."""
        again = [failure["row"] for failure in self._state["failed"] if self._may_mend(failure)]
        return [*again, *range(self.start + self._state["rows"], self.start + len(self.listed))]

    def has(self, row: int) -> bool:
        """Whether a run that was stopped has fetched the row."""
        return self._columns(row) is not None

    def put(self, row: int, ending: str, picture: bytes, columns: Mapping[str, Any]) -> None:
        """Keep a picture until the slice is whole."""
        self._parts.mkdir(exist_ok=True)
        (self._parts / f"{row:09d}.{ending}").write_bytes(picture)
        with atomic_file(self._parts / f"{row:09d}.json") as part:  # last, because it vouches for the picture
            part.write_text(json.dumps({**columns, "ending": ending}, ensure_ascii=False), encoding="utf-8")

    def finish(self, failed: Mapping[int, FetchError]) -> int:
        """Write the new pictures as a shard, and note the rows that failed; how many are new."""
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
        final = [failure for failure in self._state["failed"] if not self._may_mend(failure)]
        new = [
            {
                "row": row,
                "url": self.listed[row - self.start].url,
                "reason": refusal.reason,
                "detail": refusal.detail,
                "again": refusal.again,
            }
            for row, refusal in failed.items()
        ]
        state = {
            "rows": len(self.listed),
            "sha256": _hash(self.listed),
            "shards": self._state["shards"] + has_shard,
            "failed": sorted([*final, *new], key=lambda failure: failure["row"]),
        }
        with atomic_file(self._path) as part:
            part.write_text(json.dumps(state), encoding="utf-8")

    def _may_mend(self, failure: Mapping[str, Any]) -> bool:
        return failure["again"] or failure["reason"] in self.mended

    def _columns(self, row: int) -> dict[str, Any] | None:
        """The columns of a row whose picture is kept here; None where there is none, or one of another list."""
        try:
            columns = json.loads((self._parts / f"{row:09d}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        listed = self.listed[row - self.start]
        return columns if (columns["url"], columns["caption"]) == (listed.url, listed.caption) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged; gather into a new folder") from error


def _hash(listed: Sequence[UrlRow]) -> str:
    digest = hashlib.sha256()
    for row in listed:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()
