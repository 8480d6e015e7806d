"""Indexes pictures on a cluster: workers examine and embed batches and write new rows as fragments of the Lance table,
which this process adds to the table in one commit.

What is no new row (a new caption, a changed picture, the first animation) is written here, as in one process.
"""

from collections.abc import Generator, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from codebrush.distributed.cluster import Cluster
from codebrush.distributed.commits import Commits
from codebrush.distributed.workers import spread
from codebrush.models.clip import CLIP
from codebrush.models.precision import usable_device
from codebrush.optional import require
from codebrush.search.database import FRAME, Database, open_database
from codebrush.search.examining import Change, Examined, Examiner
from codebrush.search.index_report import IndexReport
from codebrush.search.indexing import Batch, Engine, write_examined
from codebrush.search.table_rows import add_columns, rows_of

COMMIT_ROWS = 50_000  # new rows after which a long run commits, so that one that is killed does not lose all


@dataclass
class Part:
    """What a worker did with a batch: `rows` new rows with these `paths` in `fragments`, as JSON, and what is left."""

    left: Examined
    paths: list[str] = field(default_factory=list)
    fragments: list[str] = field(default_factory=list)


class IndexWorker:
    """Examines batches for a database, and writes new rows into fragments that are in no table yet."""

    def __init__(self, place: str, clip: CLIP) -> None:
        self.database = open_database(place)
        self.examiner = Examiner(self.database, clip.to(usable_device(None)))

    def work(self, batch: Batch) -> Part:
        """Examine a batch and write what is new of it."""
        found = self.examiner.examine(batch.candidates, batch.unread)
        schema = self.database.table.schema
        is_new = [_fits(change, schema.names) and change.candidate.path not in found.known for change in found.embedded]
        new = [each for each, own in zip(found.embedded, is_new, strict=True) if own]
        part = Part(found)
        if new:
            assert found.embeddings is not None
            vectors = found.embeddings[np.array(is_new)]  # (B, E)
            part.fragments = self._write(rows_of(schema, new, vectors, found.report))
            part.paths = [each.candidate.path for each in new]
            found.report.added += len(new)
            found.embeddings = found.embeddings[~np.array(is_new)]
        left = (each for each, own in zip(found.embedded, is_new, strict=True) if not own)
        found.embedded = [_light(each) for each in left]
        found.relabelled = [_light(each) for each in found.relabelled]
        return part

    def _write(self, rows: Any) -> list[str]:
        import json

        import lance
        from lance.fragment import write_fragments

        with self.database.guarded():
            dataset = lance.dataset(self.database.place.address)
            return [json.dumps(each.to_json()) for each in write_fragments(rows, dataset, mode="append")]


def ray_engine(cluster: Cluster) -> Engine:
    """The engine of `index_pictures` that works on a cluster."""
    require("lance", "--engine ray needs")

    def run(database: Database, clip: CLIP, batches: Iterator[Batch]) -> Generator[tuple[int, IndexReport], None, None]:
        import ray

        commits = Commits(database)
        columns = set(database.table.schema.names)

        def prepared() -> Iterator[Batch]:
            for batch in batches:
                if any(not columns.issuperset(each.columns) for each in batch.candidates):
                    add_columns(database, batch.candidates)
                    columns.update(database.table.schema.names)
                yield batch._replace(unread=batch.unread.empty())

        arguments = (database.place.absolute, ray.put(deepcopy(clip).to("cpu")))
        try:
            for batch, part in spread(cluster, IndexWorker, arguments, prepared(), _name):
                commits.add(part.paths, part.fragments)
                if len(commits.paths) >= COMMIT_ROWS:
                    commits.commit()
                yield batch.count, write_examined(database, part.left)
            commits.commit()
            if commits.twins:  # they count as what another process added
                yield 0, IndexReport(added=-commits.twins, unchanged=commits.twins)
        finally:  # what is done stays done after Ctrl-C and errors, too
            commits.commit()

    return run


def _fits(change: Change, columns: list[str]) -> bool:
    """Whether the table has the columns for a picture; only this process adds some."""
    return change.decoded is None or change.decoded.frame is None or FRAME in columns


def _light(change: Change) -> Change:
    """A change without the picture's file, which need not travel back."""
    return replace(change, candidate=replace(change.candidate, data=None))


def _name(batch: Batch) -> str:
    if not batch.candidates:
        return "no picture"
    first, last = batch.candidates[0].path, batch.candidates[-1].path
    return first if first == last else f"the pictures from {first} to {last}"
