"""Adds fragments, which workers wrote for a Lance table, to it: all rows of some at once, and none of them twice."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from codebrush.errors import CodebrushError
from codebrush.search.database import Database

CHECKS = 10  # for twins, before a run ends because others merge files of the table all the time


class Commits:
    """Collects new rows, `paths` in `fragments` as JSON, until `commit`. `twins` of the rows were deleted again, as
    another process had added the same pictures.
    """

    def __init__(self, database: Database) -> None:
        import lance

        self.database = database
        self.paths: list[str] = []
        self.fragments: list[str] = []
        self.twins = 0
        with database.guarded():
            # files that other processes did not write after the workers looked
            self._known = set(_files_of(lance.dataset(database.place.address)))
        self._before: int | None = None  # the version before an attempt to append the fragments

    def add(self, paths: Sequence[str], fragments: Sequence[str]) -> None:
        """Take new rows."""
        self.paths += paths
        self.fragments += fragments

    def commit(self) -> None:
        """Make all rows appear at once. After an error or Ctrl-C, whenever it came, this goes on where it ended."""
        if not self.fragments:
            return
        import lance
        from lance.fragment import FragmentMetadata

        address = self.database.place.address
        own = {file["path"] for each in self.fragments for file in json.loads(each)["files"]}
        if os.path.isdir(address) and not all(os.path.exists(os.path.join(address, "data", each)) for each in own):
            raise CodebrushError(
                f"workers wrote rows for {self.database.place} into another folder: "
                "it must be one that all machines share under the same path, or on object storage"
            )
        with self.database.guarded(), self.database.locked():
            newest = lance.dataset(address)
            if self._before is None or not self._has_appended(newest, own):
                self._before = newest.version
                added = [FragmentMetadata.from_json(each) for each in self.fragments]
                append = lance.LanceOperation.Append(added)
                lance.LanceDataset.commit(address, append, read_version=newest.version)
            self._delete_twins(own)
        self._known |= own  # not what others wrote: workers may have looked at later batches before
        self.paths, self.fragments, self._before = [], [], None

    def _has_appended(self, newest: Any, own: set[str]) -> bool:
        """Whether a version since the first attempt has our files; later ones may have merged them with others."""
        import lance

        assert self._before is not None
        since = [each["version"] for each in newest.versions() if each["version"] > self._before]
        return any(not own.isdisjoint(_files_of(lance.dataset(newest.uri, version=each))) for each in since)

    def _delete_twins(self, own: set[str]) -> None:
        """Leave one row of each picture that another process has added since the workers looked, too.

        That is the first by its address, for whoever of several processes looks, so that they never delete both. When
        another process merges files before rows are deleted, these have other addresses, and nothing is deleted: so it
        is checked again.
        """
        for _ in range(CHECKS):
            dataset, twins = self._find_twins(own)
            if not twins:
                return
            for start in range(0, len(twins), 500):
                done = dataset.delete(f"_rowid IN ({', '.join(map(str, twins[start : start + 500]))})")
                self.twins += done["num_deleted_rows"]
        place = self.database.place
        raise CodebrushError(f"another process keeps merging the files of {place}: end it and run the command again")

    def _find_twins(self, own: set[str]) -> tuple[Any, list[int]]:
        """The table as it is now, and the addresses of rows of our pictures that have another one before them."""
        import lance
        import pyarrow.compute as pc

        dataset = lance.dataset(self.database.place.address)
        fragments = dataset.get_fragments()
        new = [each for each in fragments if self._known.isdisjoint(file.path for file in each.data_files())]
        if all(file.path in own for each in new for file in each.data_files()):
            return dataset, []  # nobody else wrote
        rows = dataset.scanner(columns=["path"], fragments=new, with_row_id=True).to_table()
        rows = rows.filter(pc.field("path").isin(self.paths))
        seen, twins = set[str](), list[int]()
        for row in rows.sort_by("_rowid").to_pylist():
            twins += [row["_rowid"]] if row["path"] in seen else []
            seen.add(row["path"])
        return dataset, twins


def _files_of(dataset: Any) -> Iterator[str]:
    for fragment in dataset.get_fragments():
        yield from (file.path for file in fragment.data_files())
