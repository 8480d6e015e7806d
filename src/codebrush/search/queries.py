"""Searches a database by text, picture, caption and SQL condition, best first."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.curation.phrases import STOP_WORDS
from codebrush.data.sources.file_names import existing
from codebrush.errors import UsageError
from codebrush.search.conditions import with_columns
from codebrush.search.database import Database, quoted
from codebrush.search.messages import plain_reason

WITHOUT_WEIGHT = 0.5  # of an unwanted text, at least; the query has weight 1
CANCELLED = 0.25  # of the query's length: if less is left beside the unwanted texts, it asks for nothing
# All partitions of the vector index are searched: with one byte a value that is many times faster than comparing all
# embeddings at full precision, and nearly as exact. Fewer partitions would save little up to a million pictures, and
# texts, which lie apart from pictures in CLIP's space, would miss many neighbours (benchmarks/search_100k.py).
PROBES = 1_000_000
REFINE = 2  # times k: so many of the best by the index are compared at full precision
FUSED = 100  # rows of each list that a hybrid search merges, at least; otherwise ten times k
MAX_RESULTS = 10_000
Mode = Literal["vector", "text", "hybrid"]
STOP_WORD = re.compile(rf"(?<![^\W_])(?:{'|'.join(sorted(STOP_WORDS))})(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class Hit:
    """One result. `score` is the cosine with the query (vector), the BM25 score of the caption (text), or the sum of
    reciprocal ranks (hybrid), comparable within one search only. `columns` are all others that a condition can use.
    """

    path: str
    score: float
    caption: str
    thumbnail: bytes
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether the picture's file, or the data source with it, still exists; one on a hub is assumed to."""
        if self.columns.get("modified") is not None:
            return existing(Path(self.path)).exists()
        source = self.columns.get("source") or ""
        return not os.path.isabs(source) or os.path.exists(source) or any(glob.iglob(source, recursive=True))


def combine(
    text: Tensor | None, image: Tensor | None, without: Tensor | None = None, image_weight: float = 0.5
) -> Tensor:
    """The unit vector (E,) to search for, from unit vectors of a text (E,), a picture (E,) and unwanted texts (U, E).

    With text and picture, the picture has weight `image_weight` (0 to 1) and the text the rest. Unwanted texts are
    subtracted with half that weight, or as much more as they have in common with the query: it never points to them.

    Raises:
        UsageError: if the weight is out of range, neither is given, or the unwanted texts leave nothing of the query.
    """
    if not 0 <= image_weight <= 1:
        raise UsageError(f"the weight of the picture is {image_weight:g}; it must be between 0 and 1")
    wanted = [vector for vector in (text, image) if vector is not None]
    if not wanted:
        raise UsageError("there is nothing to search for: give a text, a picture or both")
    weights = (1 - image_weight, image_weight) if len(wanted) == 2 else (1.0,)
    query = torch.stack([weight * vector for weight, vector in zip(weights, wanted, strict=True)]).sum(0)  # (E,)
    if without is not None and len(without):
        common = torch.linalg.lstsq(without.double().T, query.double()[:, None], driver="gelsd").solution  # (U, 1)
        left = query.double() - without.double().T @ common[:, 0]  # (E,)
        if left.norm() < CANCELLED * query.norm():
            raise UsageError("the query and the unwanted texts cancel out: leave one of them out")
        query = query - (without @ query).clamp(min=WITHOUT_WEIGHT) @ without
    if not query.norm() > 1e-6:
        raise UsageError("the parts of the query cancel out: leave one of them out")
    return F.normalize(query, dim=0)


def search(
    database: Database,
    vector: Tensor | None,
    text: str | None = None,
    *,
    k: int = 10,
    where: str | None = None,
    mode: Mode = "vector",
    without: Sequence[str] = (),
    min_score: float | None = None,
) -> list[Hit]:
    """The `k` best rows (1 to 10,000) that meet the SQL condition `where`, best first.

    Mode "vector" finds embeddings near the unit `vector` (E,). "text" finds captions with any word of `text` and none
    of the texts `without`, whatever their endings; stop words like "a" only count if there are no other words. "hybrid"
    merges both lists by reciprocal rank fusion (Cormack et al. 2009). `min_score`, -1 to 1, leaves out rows whose
    cosine is lower, in mode "vector" alone.

    Raises:
        UsageError: if `k` or `min_score` is out of range, the mode lacks its text or vector, or the condition cannot be
            read.
        DataError: if the database is damaged.
    """
    if not 1 <= k <= MAX_RESULTS:
        raise UsageError(f"k is {k}; it must be between 1 and {MAX_RESULTS:,}")
    if mode != "vector" and not (text or "").strip():
        raise UsageError(f"the mode {mode} searches for words in captions: give a text")
    if mode != "text" and vector is None:
        raise UsageError(f"the mode {mode} searches for pictures that resemble a text or a picture: give one")
    if min_score is not None:
        check_min_score(min_score, mode)
    if where is not None:
        check_condition(database, where)
        where = with_columns(where, database.table.schema.names, database.source_names())
    with database.guarded():
        rows = _query(database.table, vector, text or "", without, mode)
        rows = rows.limit(k if mode != "hybrid" else max(FUSED, 10 * k))
        rows = rows if where is None else rows.where(where)
        found = rows.to_list()
        if mode == "text":
            found += _spelled(database.table, text or "", without, where, k, {row["path"] for row in found})
    hits: dict[str, Hit] = {}
    for hit in map(_hit, found):
        # While another process writes, a hybrid search may read its two lists from two versions of the table and return
        # a row twice: its scores are added up here.
        twin = hits.get(hit.path)
        hits[hit.path] = hit if twin is None else replace(hit, score=hit.score + twin.score)
    near = (hit for hit in hits.values() if min_score is None or hit.score >= min_score)
    return sorted(near, key=lambda hit: (-hit.score, hit.path))[:k]


def check_min_score(min_score: float, mode: Mode) -> None:
    """Raise UsageError if a least score is not a cosine, or the scores of the mode are none."""
    if not -1 <= min_score <= 1:
        raise UsageError(f"the least score is {min_score:g}; it is a cosine, between -1 and 1")
    if mode != "vector":
        raise UsageError(f"the mode {mode} has other scores than cosines: use the mode vector with a least score")


def check_condition(database: Database, where: str) -> None:
    """Raise a UsageError if a condition is malformed, uses an unknown column, or is followed by something else."""
    asked, where = where, with_columns(where, database.table.schema.names, database.source_names())
    with database.guarded():
        try:
            _passing(database, where)
        except (ValueError, RuntimeError) as error:
            for own in ("path = ''", "size IS NULL"):  # these fail too if the database is damaged
                _passing(database, own)
            raise _unreadable(database, asked, plain_reason(error)) from error
        try:  # LanceDB reads a condition to its end and ignores what comes after it
            is_whole = not _passing(database, f"({where}\n) AND false")
        except (ValueError, RuntimeError):
            is_whole = False
        if not is_whole:
            raise _unreadable(database, asked, "only its beginning is a condition: leave out the rest")


def _passing(database: Database, where: str) -> int:
    """1 if any row meets a condition, else 0."""
    return database.table.search().where(where).select(["path"]).limit(1).to_arrow().num_rows


def _unreadable(database: Database, where: str, reason: str) -> UsageError:
    elsewhere = {column: name for name, columns in database.source_names().items() for column in columns}
    names = [
        f"{name} ({elsewhere[name]} in its source)" if name in elsewhere else name
        for name in _shown(database.table)
        if name != "thumbnail"
    ]
    return UsageError(f'cannot read the condition "{where}" ({reason}); the columns are {", ".join(names)}')


def _shown(table: Any) -> list[str]:
    return [name for name in table.schema.names if name != "embedding"]


def _query(table: Any, vector: Tensor | None, text: str, without: Sequence[str], mode: Mode) -> Any:
    shown = _shown(table)
    if mode == "text":
        return table.search(_caption_query(text, without), query_type="fts").select([*shown, "_score"])
    assert vector is not None
    numbers = vector.float().cpu().numpy()  # (E,)
    if mode == "vector":
        query = table.search(numbers, vector_column_name="embedding", query_type="vector")
        query = query.select([*shown, "_distance"])
    else:
        query = table.search(query_type="hybrid", vector_column_name="embedding")
        query = query.vector(numbers).text(_caption_query(text, without)).select(shown)
    return query.distance_type("cosine").nprobes(PROBES).refine_factor(REFINE)


def _spelled(
    table: Any, text: str, without: Sequence[str], where: str | None, k: int, found: set[str]
) -> list[dict[str, Any]]:
    """Rows whose caption contains a word of `text` that the index of words does not have: an emoji, or a part of a
    longer word in a script without blanks. They score 0, below the words of the index.
    """
    words = [word for word in text.split() if not word.isascii()]
    if not words:
        return []
    condition = " OR ".join(f"contains(caption, {quoted(word)})" for word in words)
    unwanted = [word for each in without for word in each.split() if not word.isascii()]
    for part in [f"NOT contains(caption, {quoted(word)})" for word in unwanted] + ([where] if where else []):
        condition = f"({condition}) AND ({part}\n)"
    rows = table.search().where(condition).select(_shown(table)).limit(k + len(found)).to_list()
    return [{**row, "_score": 0.0} for row in rows if row["path"] not in found]


def _caption_query(text: str, without: Sequence[str]) -> Any:
    """A full-text query for the words of a text; nothing in it is read as an operator."""
    from lancedb.query import BooleanQuery, MatchQuery, Occur

    match: Any = MatchQuery  # its type annotations leave out its defaults
    wanted = match(_without_stop_words(text), "caption")
    unwanted = [(Occur.MUST_NOT, match(_without_stop_words(each), "caption")) for each in without]
    return BooleanQuery([(Occur.MUST, wanted), *unwanted]) if unwanted else wanted


def _without_stop_words(text: str) -> str:
    """A text without its stop words, unless it has no other words. The index has them, for texts like "the"."""
    rest = STOP_WORD.sub(" ", text)
    return rest if re.search(r"[^\W_]", rest) else text


def _hit(row: dict[str, Any]) -> Hit:
    if "_relevance_score" in row:
        score = row["_relevance_score"]
    else:
        score = row["_score"] if "_score" in row else 1 - row["_distance"]
    own = ("path", "caption", "thumbnail", "_score", "_distance", "_relevance_score")
    columns = {name: value for name, value in row.items() if name not in own}
    return Hit(row["path"], float(score), row["caption"] or "", row["thumbnail"] or b"", columns)
