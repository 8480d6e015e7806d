"""What a run of indexing did, as numbers of pictures and lists of what was left out."""

from dataclasses import dataclass, field
from typing import Any

from codebrush.search.vector_index import IndexSettings


@dataclass
class IndexReport:
    """What a run did, in numbers of pictures. `skipped` lists the pictures that could not be indexed, with the reason.
    `reused` of the added ones were known under another path. `renamed` lists the columns with another name in the
    database, `new` ones that it did not have yet. `unfit` lists the columns with cells that do not fit their type: what
    the column holds, how many cells were left empty, and the path and value of the first. `frames` has the number of
    the frame, from 0, by which each animation and file of several pages was embedded. `vector_index` is the
    vector index, how it is searched and what its searches find, if the run made one.
    """

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    reused: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    unfit: list[dict[str, Any]] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    renamed: list[dict[str, Any]] = field(default_factory=list)
    vector_index: IndexSettings | None = None

    def merge(self, other: "IndexReport") -> None:
        """Add what another part of the run did."""
        for name in ("added", "updated", "removed", "unchanged", "reused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped += other.skipped
        self.frames |= other.frames
        self.renamed += other.renamed
        for entry in other.unfit:
            known = next((each for each in self.unfit if each["column"] == entry["column"]), None)
            if known is None:
                self.unfit.append(entry)
            else:
                known["cells"] += entry["cells"]
